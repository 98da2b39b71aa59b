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
"""What the programs that train language models share: the unit of the loss, and the sample."""

import math
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline, set_seed


def bits(nats: float, n_parts: int) -> float:
    """What so many nats are in bits for each part: each byte, character or token."""
    return nats / math.log(2) / n_parts


def write_sample(folder: Path, prompt: str, seed: int, max_new_tokens: int = 120) -> str:
    """Load the saved model as anyone would, and let it continue the prompt."""
    generator = pipeline(
        "text-generation",
        model=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    set_seed(seed)
    (output,) = generator(prompt, max_new_tokens=max_new_tokens, do_sample=True, temperature=0.8, top_p=0.95)
    return output["generated_text"]
