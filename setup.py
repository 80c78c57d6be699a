import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"',
                    (here / "cvkit/__init__.py").read_text(encoding="utf-8")).group(1)

setup(
    name="cvkit",
    version=version,
    description="A config-registry framework for image classification",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url="https://github.com/cvkit/cvkit",
    license="MIT",
    packages=find_packages(include=["cvkit", "cvkit.*"]),
    package_data={"cvkit.reporting": ["templates/*.j2"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.8",
        "torchvision>=0.23",
        "albumentations>=2.0.8,<2.1",  # the last release under MIT
        "grad-cam>=1.5.5",
        "jinja2>=3.0",
        "matplotlib>=3.7",
        "numpy>=1.26.4",
        "pillow>=9.4",
        "pyyaml>=6.0",
        "scikit-learn>=1.2.2",
        "tensorboard>=2.14",
        "torchinfo>=1.8",
        "torchmetrics>=1.0",
        "tqdm>=4.64",
        "yacs>=0.1.8",
    ],
    extras_require={"dev": ["hypothesis>=6.100", "ipykernel>=6.20", "nbclient>=0.8", "pytest>=7.4",
                            "pytest-xdist>=3.3", "ruff>=0.6"]},
)
