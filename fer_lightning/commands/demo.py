"""A page on this machine: drop a photo or use the camera, see the faces and their emotions.

It can be reached from this machine alone, and no picture leaves it or is stored. Needs pip install -e ".[photo]".
"""

import argparse

from fer_lightning.commands import add_network_arguments, add_tta_argument, load_network


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``fer-lightning demo``."""
    add_network_arguments(parser)
    add_tta_argument(parser)
    parser.add_argument("--port", type=int, default=8000, help="of 127.0.0.1; default %(default)s, 0 takes any")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    import webbrowser

    from fer_lightning.inference.demo import server
    from fer_lightning.inference.photos import require_detector
    from fer_lightning.models.tta import check_tta

    check_tta(args.tta)
    require_detector()
    with server(load_network(args), args.port, args.tta) as serving:
        address = "http://{}:{}/".format(*serving.server_address[:2])
        print(f"{address} shows the page; Ctrl-C ends it.", flush=True)
        if args.open:
            webbrowser.open(address)
        serving.serve_forever()
    return 0
