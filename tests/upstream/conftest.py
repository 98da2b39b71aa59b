# Copyright 2026 The modeling-qrnn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Makes Transformers' own common tests importable, as the package `transformers_tests`.

They are part of Transformers' source distribution and not of its wheel, so the source distribution of the installed
version is downloaded, once, into pytest's cache.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from filelock import FileLock
from transformers.models.auto import modeling_auto


# What the common tests import from files that are not distributed: empty mixins, and fields that any config must keep.
UNDISTRIBUTED = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "architectures": ["QRNNModel"],
            "dtype": "float16",
            "id2label": {0: "no", 1: "yes"},
            "label2id": {"no": 0, "yes": 1},
            "output_hidden_states": True,
            "problem_type": "regression",
            "return_dict": False,
        }
    },
}

# Where the common tests look up, by name, what a class is for. The Auto classes' `register` does not fill these.
CLASS_NAMES = {
    "qrnn": {
        "MODEL_MAPPING_NAMES": "QRNNModel",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "QRNNForCausalLM",
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "QRNNForMaskedLM",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "QRNNForSequenceClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "QRNNForTokenClassification",
    },
    "qrnn_seq2seq": {
        "MODEL_MAPPING_NAMES": "QRNNSeq2SeqModel",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "QRNNForConditionalGeneration",
    },
    "qrnn_speech": {
        "MODEL_MAPPING_NAMES": "QRNNSpeechModel",
        "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES": "QRNNForAudioClassification",
        "MODEL_FOR_CTC_MAPPING_NAMES": "QRNNForCTC",
    },
    "qrnn_time_series": {
        "MODEL_MAPPING_NAMES": "QRNNTimeSeriesModel",
        "MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING_NAMES": "QRNNForTimeSeriesPrediction",
    },
}

MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_training_test",
    "order",
    "torch_compile_test",
)


def download_common_tests(package: Path) -> None:
    """Create `package` from the `tests` folder of the source distribution of the installed Transformers."""
    name = f"transformers-{transformers.__version__}"
    with tempfile.TemporaryDirectory(dir=package.parent) as scratch:
        requirement = name.replace("-", "==")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=transformers", requirement]
        download = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        if download.returncode:
            raise pytest.UsageError(f"tests/upstream needs the source distribution {name}:\n{download.stderr}")
        with tarfile.open(f"{scratch}/{name}.tar.gz") as archive:
            tests = [member for member in archive if member.name.startswith(f"{name}/tests/")]
            archive.extractall(scratch, tests, filter="data")
        Path(scratch, name, "tests", "__init__.py").touch()
        Path(scratch, name, "tests").rename(package)


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by Transformers' common tests")
    cache = config.cache.mkdir(f"transformers-{transformers.__version__}")
    package = cache / "transformers_tests"
    with FileLock(cache / "lock"):  # the other workers wait for the first one's download
        if not package.exists():
            download_common_tests(package)
    sys.path.append(str(cache))
    for module, contents in UNDISTRIBUTED.items():
        stub = ModuleType(f"transformers_tests.{module}")
        vars(stub).update(contents)
        sys.modules[stub.__name__] = stub


@pytest.fixture(autouse=True)
def class_names(monkeypatch):
    for model_type, names in CLASS_NAMES.items():
        for table, name in names.items():
            monkeypatch.setitem(getattr(modeling_auto, table), model_type, name)
