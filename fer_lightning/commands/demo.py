"""Serve a local web page that predicts emotions in a photo or a camera stream.

The page can be reached only from this machine; from another one, forward the port: ssh -L 8000:localhost:8000 HOST.
No image leaves the machine or is stored. Needs pip install -e ".[photo]". Programs can use it, too: `curl
--data-binary @photo.jpg http://localhost:8000/predict` returns JSON with the schema of /schema.json.
"""

import argparse

from fer_lightning.commands import add_network_arguments, add_tta_argument, load_network


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fer-lightning demo``."""
    add_network_arguments(parser)
    add_tta_argument(parser)
    parser.add_argument(
        "--port", type=int, default=8000, help="port on 127.0.0.1 (default: %(default)s); 0 selects a free one"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    import webbrowser

    from fer_lightning.inference.demo import server
    from fer_lightning.inference.detector import require_detector
    from fer_lightning.models.tta import check_tta

    check_tta(args.tta)
    require_detector()
    with server(load_network(args), args.port, args.tta) as page_server:
        address = "http://{}:{}/".format(*page_server.server_address[:2])
        print(f"Serving on {address} (press Ctrl-C to stop).", flush=True)
        if args.open:
            webbrowser.open(address)
        page_server.serve_forever()
    return 0
