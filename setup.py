from pathlib import Path

from setuptools import find_packages, setup

VERSION = "0.1.0"

CORE = [
    "torch>=2.11",
    "triton>=3.6; platform_system == 'Linux'",
    "diffusers>=0.41",
    "transformers>=5.17",
    "numpy>=1.26",
    "tokenizers>=0.22",
    "huggingface_hub>=1.0",
    "safetensors>=0.5",
    "pillow>=10.1",
    "tqdm>=4.66",
]
METRICS = ["scikit-image>=0.25"]
FID = ["torch-fidelity>=0.3"]  # brings torchvision, so not with a torch that torchvision does not match
OCR = ["rapidocr-onnxruntime>=1.4; python_version < '3.13'"]
PLOTS = ["matplotlib>=3.8"]
PYTEST = ["pytest>=8", "pytest-xdist>=3.6"]
TEST = [
    *METRICS,
    *OCR,
    *PLOTS,
    *PYTEST,
    "hypothesis>=6.100",
    "peft>=0.17",
    "scipy>=1.14",
    "ruff>=0.12",
    "mypy>=1.15",
]

setup(
    name="lotts",
    version=VERSION,
    description="Localised test-time scaling for diffusion models: find the defect, resample only there.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.14",
    packages=[
        *find_packages(include=["lotts", "lotts.*"]),
        "lotts.kernels",
        *(f"lotts.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"lotts": "lotts", "lotts.kernels": "kernels"},
    package_data={"lotts.shapes": ["weights/**/*"], "lotts.kernels": ["launch_table.json"]},
    include_package_data=False,
    install_requires=CORE,
    extras_require={
        "metrics": METRICS,
        "fid": FID,
        "ocr": OCR,
        "plots": PLOTS,
        "ray": ["ray>=2.50"],
        "test": TEST,
        "bench": [*PLOTS, *PYTEST, "pytest-benchmark>=5"],
    },
    entry_points={"console_scripts": ["lotts=lotts.cli:main"]},
)
