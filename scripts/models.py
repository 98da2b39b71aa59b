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
"""The model of a run: new, with the body of a trained one, or the LSTM of equal size."""

from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from command_line import one_line_error
from lstm_baseline import LSTM_CLASSES, in_architecture
from modeling_qrnn.modeling_qrnn import QRNNPreTrainedModel
from recipes import MISTAKES, TOKEN_IDS, ModelArguments, make_config, overrides_of, read_model_config


def make_model(
    model_class: type[QRNNPreTrainedModel],
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    **fixed: Any,
) -> QRNNPreTrainedModel:
    """The model that the arguments describe, for the vocabulary of the tokenizer; `fixed` is what the data decide."""
    if model_args.init_from is not None:
        return load_body(model_class, model_args, **fixed)
    config = make_config(model_args, tokenizer, model_class.config_class, **fixed)
    with one_line_error(f"--model-config {model_args.model_config}", ValueError):
        model = model_class(config)
    return in_architecture(model, model_args.architecture)


def load_body(model_class: type[QRNNPreTrainedModel], model_args: ModelArguments, **fixed: Any) -> QRNNPreTrainedModel:
    """A model with all the weights of a trained one but those of its head, which are new where sizes differ."""
    folder = model_args.init_from
    if model_args.architecture == "lstm":
        model_class = LSTM_CLASSES[model_class]
    config_class, prefix = model_class.config_class, f"{model_class.base_model_prefix}."
    with one_line_error(f"--model-overrides {model_args.model_overrides}", *MISTAKES):
        overrides = overrides_of(model_args, config_class, {"vocab_size", *TOKEN_IDS, *fixed})
    with one_line_error(f"--init-from {folder}", OSError, RuntimeError, SafetensorError, *MISTAKES):
        config = config_class.from_dict({**read_model_config(folder, config_class), **overrides, **fixed})
        options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        model, found = model_class.from_pretrained(folder, config=config, **options)
        found["mismatched_keys"] = [name for name, *_ in found["mismatched_keys"]]
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            names = sorted(name for name in found[problem] if name.startswith(prefix))
            if names:
                raise ValueError(f"{problem.replace('_keys', '')} weights: {', '.join(names)}")
    return model
