"""Train the baseline recipe in plain PyTorch, without this package, for comparison in the benchmark.

    python -m fer_lightning.benchmark.plain_script FER2013/train --epochs 20 --test FER2013/test

Only the network comes from the package. Labels are in ImageFolder's alphabetical order.
"""

import argparse
import os
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from fer_lightning.models.fer_model0 import FERModel0

Batches = DataLoader[tuple[Tensor, Tensor]]


def test_transform(image_size: int) -> transforms.Compose:
    """Build the test transform: PIL image -> float32 (1, image_size, image_size), normalised."""
    return transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize((image_size, image_size)),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    )


def train_transform(image_size: int) -> transforms.Compose:
    """Build the training transform, with the magnitudes of augment=baseline.

    It maps a PIL image to float32 (1, image_size, image_size), augmented and normalised.
    """
    return transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize((image_size, image_size)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10),
            transforms.ColorJitter(brightness=0.2, contrast=0.2),
            transforms.RandomAffine(0, translate=(0.1, 0.1), scale=(0.9, 1.1), shear=5),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print one line per epoch; its duration excludes the test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="training images, one folder per class")
    parser.add_argument("--test", metavar="FOLDER", help="test images, one folder per class")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, help="batches per epoch, default all")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)

    loading = {
        "batch_size": args.batch_size,
        "num_workers": args.workers,
        "pin_memory": args.device == "cuda",
    }
    faces = ImageFolder(args.folder, train_transform(args.image_size))
    sampler = RandomSampler(faces, num_samples=args.steps and args.steps * args.batch_size)
    train_loader: Batches = DataLoader(faces, sampler=sampler, **loading)
    test_loader: Batches | None = None
    if args.test:
        test_loader = DataLoader(ImageFolder(args.test, test_transform(args.image_size)), **loading)
    model = FERModel0(args.channels, args.image_size).to(args.device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    for epoch in range(args.epochs):
        model.train()
        loss_sum, correct, n = 0.0, 0, 0
        started = time.perf_counter()
        for images, labels in train_loader:
            images, labels = images.to(args.device), labels.to(args.device)
            optimizer.zero_grad()
            logits = model(images)
            loss = criterion(logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            n += len(labels)
        seconds = time.perf_counter() - started
        line = f"epoch {epoch}: loss {loss_sum / n:.4f}, accuracy {correct / n:.2%}, {seconds:.2f} s, "
        line += f"{n / seconds:.1f} images/s"
        if test_loader is not None:
            line += f"; test accuracy {test(model, test_loader, args.device):.2%}"
        print(line, flush=True)


@torch.no_grad()
def test(model: nn.Module, loader: Batches, device: str) -> float:
    """Return the accuracy as a fraction."""
    model.eval()
    correct, n = 0, 0
    for images, labels in loader:
        correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
        n += len(labels)
    return correct / n


if __name__ == "__main__":
    main()
