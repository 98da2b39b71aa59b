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
"""The pipelines `translation` and `summarization`, which Transformers 5 dropped, for any model that fits them."""

import re
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.pipelines import Pipeline


class Seq2SeqPipeline(Pipeline):
    """What both pipelines share: a text in, `generate`, and a text out, under the key of the task.

    In a process without the package, a model that was saved by `pipe.save_pretrained(folder)` brings the pipeline:
    `pipeline("translation", model=folder, trust_remote_code=True)`. Such a folder says that it has a pipeline of its
    own, so with the package too either that option is needed or `pipeline_class=TranslationPipeline`, which runs no
    code of the folder.
    """

    return_name: str
    _pipeline_calls_generate = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True
    _default_generation_config = GenerationConfig(max_new_tokens=256, num_beams=4)

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any):
        if not (model.can_generate() and model.config.is_encoder_decoder):
            raise ValueError(
                "`model` must be one from text to text that generates, as `AutoModelForSeq2SeqLM` loads it, got "
                f"{type(model).__name__}"
            )
        super().__init__(model, *args, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Turn texts into texts.

        Args:
            inputs: a text, a list of texts, or a generator or dataset of them.
            kwargs: `truncation`, as of the tokenizer; `prefix`, put before each text; `return_tensors=True` for token
                ids in place of texts; `clean_up_tokenization_spaces`, as of the tokenizer; `batch_size`; and any
                parameter of `generate`, as `max_new_tokens` (256 if neither it nor the model's generation config says
                otherwise), `num_beams` (likewise 4) or `num_return_sequences`.

        Returns:
            For a text or a list a list of dicts, one for each text; with several sequences for each, for a list of
            texts a list of such lists; for anything else an iterator.

        Raises:
            ValueError: for something else than text, or a text without a token.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        results = super().__call__(inputs, **kwargs)
        if isinstance(inputs, list) and all(len(result) == 1 for result in results):
            return [result[0] for result in results]
        return results

    def _sanitize_parameters(
        self,
        truncation=None,
        prefix=None,
        return_tensors=None,
        clean_up_tokenization_spaces=None,
        **generate_kwargs,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {"truncation": truncation, "prefix": prefix}
        postprocess = {
            "return_tensors": return_tensors,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
        }
        if self.assistant_model is not None:
            generate_kwargs["assistant_model"] = self.assistant_model
        if self.assistant_tokenizer is not None:
            generate_kwargs |= {"tokenizer": self.tokenizer, "assistant_tokenizer": self.assistant_tokenizer}
        return given(preprocess), generate_kwargs, given(postprocess)

    def preprocess(self, inputs: str, truncation=False, prefix=None, **languages):
        if not isinstance(inputs, str):
            raise ValueError(f"The {self.task} pipeline takes texts, got {type(inputs).__name__}: {inputs!r:.80}")
        text = (prefix if prefix is not None else self.prefix or "") + inputs
        model_inputs = self._tokenize(text, truncation, **languages)
        if model_inputs["input_ids"].shape[1] == 0:
            raise ValueError(f"The {self.task} pipeline takes texts of at least one token, got {inputs!r}")
        model_inputs.pop("token_type_ids", None)
        return model_inputs

    def _tokenize(self, text: str, truncation):
        return self.tokenizer(text, truncation=truncation, return_tensors="pt")

    def _forward(self, model_inputs, **generate_kwargs):
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs)
        output_ids = self.model.generate(**model_inputs, **generate_kwargs)
        batch_size = model_inputs["input_ids"].shape[0]
        return {"output_ids": output_ids.unflatten(0, (batch_size, -1))}  # (batch, sequences for each text, length)

    def postprocess(self, model_outputs, return_tensors=False, clean_up_tokenization_spaces=False):
        output_ids = model_outputs["output_ids"][0]
        if return_tensors:
            return [{f"{self.return_name}_token_ids": tokens} for tokens in output_ids]
        texts = self.tokenizer.batch_decode(
            output_ids, skip_special_tokens=True, clean_up_tokenization_spaces=clean_up_tokenization_spaces
        )
        return [{f"{self.return_name}_text": text} for text in texts]


class SummarizationPipeline(Seq2SeqPipeline):
    """Summarize texts, as `pipeline("summarization", ...)`.

    Example:
        >>> from transformers import pipeline
        >>> summarize = pipeline("summarization", model="folder-of-a-model")  # doctest: +SKIP
        >>> summarize("A long text ...", max_new_tokens=20)  # doctest: +SKIP
        [{'summary_text': 'A short one'}]
    """

    return_name = "summary"


class TranslationPipeline(Seq2SeqPipeline):
    """Translate texts, as `pipeline("translation", ...)` or, say, `pipeline("translation_de_to_en", ...)`.

    A tokenizer of several languages takes them from the task's name, or from `src_lang` and `tgt_lang`.

    Example:
        >>> from transformers import pipeline
        >>> translate = pipeline("translation_de_to_en", model="folder-of-a-model")  # doctest: +SKIP
        >>> translate(["Guten Morgen", "Danke"], max_new_tokens=20, batch_size=2)  # doctest: +SKIP
        [{'translation_text': 'Good morning'}, {'translation_text': 'Thank you'}]
    """

    return_name = "translation"

    def _sanitize_parameters(self, src_lang=None, tgt_lang=None, **kwargs):  # type: ignore[override]
        is_multilingual = hasattr(self.tokenizer, "_build_translation_inputs")
        if (src_lang or tgt_lang) and not is_multilingual:
            raise ValueError(
                "`src_lang` and `tgt_lang` must be None with a tokenizer that knows no languages, "
                f"got {src_lang!r} and {tgt_lang!r}"
            )
        if is_multilingual and not (src_lang or tgt_lang) and (match := TRANSLATION_TASK.fullmatch(self.task)):
            src_lang, tgt_lang = match.groups()
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess | given({"src_lang": src_lang, "tgt_lang": tgt_lang}), forward, postprocess

    def _tokenize(self, text: str, truncation, src_lang=None, tgt_lang=None):
        if not hasattr(self.tokenizer, "_build_translation_inputs"):
            return super()._tokenize(text, truncation)
        languages = {"src_lang": src_lang, "tgt_lang": tgt_lang}
        return self.tokenizer._build_translation_inputs(text, return_tensors="pt", truncation=truncation, **languages)


TRANSLATION_TASK = re.compile("translation_(.+)_to_(.+)")


class TaskAliases(dict):
    """Other names of tasks, as Transformers keeps them, and `translation_xx_to_yy` for any two languages.

    Example:
        >>> aliases = TaskAliases({"ner": "token-classification"})
        >>> aliases["ner"], aliases["translation_de_to_en"], "translation_de" in aliases
        ('token-classification', 'translation', False)
    """

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) or (isinstance(task, str) and bool(TRANSLATION_TASK.fullmatch(task)))

    def __missing__(self, task: str) -> str:
        if task in self:
            return "translation"
        raise KeyError(task)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not `None`: of a call's parameters only these replace the constructor's."""
    return {name: value for name, value in options.items() if value is not None}


__all__ = ["Seq2SeqPipeline", "SummarizationPipeline", "TaskAliases", "TranslationPipeline"]
