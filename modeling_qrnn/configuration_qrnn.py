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
"""QRNN model configuration."""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, cast

from huggingface_hub.dataclasses import as_validated_field, strict
from transformers import PreTrainedConfig
from transformers.utils.type_validators import interval


_size = interval(min=1)
_probability = interval(min=0.0, max=1.0, exclude_max=True)
_weight = interval(min=0.0)


def _or_none(is_allowed: Callable[[Any], bool], allowed: str) -> Callable[..., Any]:
    """A validated field: `None`, or a value for which `is_allowed` holds."""

    @as_validated_field
    def validated(value):
        if value is not None and not is_allowed(value):
            raise ValueError(f"Value must be {allowed} or None, got {value}.")

    return validated


_size_or_none = _or_none(lambda value: value >= 1, "at least 1")
_weight_or_none = _or_none(lambda value: value >= 0, "at least 0")
_probability_or_none = _or_none(lambda value: 0 <= value < 1, "a probability in [0, 1)")


def _per_layer(kernel_size: int | list[int], num_layers: int) -> list[int]:
    return [kernel_size] * num_layers if isinstance(kernel_size, int) else list(kernel_size)


@strict
class QRNNStackConfig(PreTrainedConfig):
    r"""What the configurations of all QRNN models share: a stack of layers. `QRNNConfig` describes the fields.

    Example:
        >>> QRNNStackConfig(hidden_size=64, num_hidden_layers=3, connection="dense").layer_sizes
        [(64, 64), (128, 64), (192, 64)]
    """

    hidden_size: int = _size(default=640)
    num_hidden_layers: int = _size(default=2)
    kernel_size: int | list[int] = 2
    pooling: Literal["f", "fo", "ifo"] = "fo"
    candidate_activation: Literal["tanh", "identity", "relu"] = "tanh"
    connection: Literal["plain", "dense", "residual"] = "plain"
    norm: Literal["layer_norm", "rms_norm"] | None = None
    norm_eps: float | int = _weight(default=1e-6)
    intermediate_size: int | None = _size_or_none(default=None)
    bidirectional: bool = False
    forget_bias: float | int = 0.0
    zoneout: float | int = _probability(default=0.0)
    input_dropout: float | int = _probability(default=0.0)
    hidden_dropout: float | int = _probability(default=0.0)
    output_dropout: float | int = _probability(default=0.0)
    weight_dropout: float | int = _probability(default=0.0)
    locked_dropout: bool = False
    initializer_range: float | int = _weight(default=0.02)
    gate_initializer_range: float | int | None = _weight_or_none(default=None)
    use_cache: bool | None = None

    def __post_init__(self, **kwargs):
        if self.norm is None and self.connection == "residual":
            self.norm = "rms_norm"
        if self.use_cache is None:
            self.use_cache = not self.bidirectional
        super().__post_init__(**kwargs)

    @property
    def layer_types(self) -> list[str]:
        """The kind of each layer's cache, by which Transformers builds it."""
        return ["qrnn_v1"] * self.num_hidden_layers

    @property
    def kernel_sizes(self) -> list[int]:
        """The width of each layer's convolution."""
        return _per_layer(self.kernel_size, self.num_hidden_layers)

    @property
    def input_size(self) -> int:
        """The width of what comes into the stack."""
        return self.hidden_size

    @property
    def layer_widths(self) -> list[int]:
        """The channels out of each layer's QRNN, both directions together."""
        return [self.hidden_size] * self.num_hidden_layers

    @property
    def layer_sizes(self) -> list[tuple[int, int]]:
        """The channels into and out of each layer's QRNN, both directions together."""
        outputs = self.layer_widths
        if self.connection == "residual":
            inputs = outputs
        elif self.connection == "dense":
            inputs = [self.input_size + sum(outputs[:layer]) for layer in range(self.num_hidden_layers)]
        else:
            inputs = [self.input_size, *outputs[:-1]]
        return list(zip(inputs, outputs, strict=True))

    @property
    def state_widths(self) -> list[tuple[int, int, int]]:
        """What each layer's cache holds: channels and columns of the convolution's inputs, and the recurrent width."""
        return [
            (input_size, max(kernel_size - 1, 1), output_size)
            for (input_size, output_size), kernel_size in zip(self.layer_sizes, self.kernel_sizes, strict=True)
        ]

    @property
    def output_size(self) -> int:
        """The width of `last_hidden_state`."""
        return self.layer_sizes[-1][1]

    def validate_layer_type(self):
        """The layer types are the property above, not a choice."""

    def validate_kernel_size(self):
        """Part of `@strict`-powered validation: one width, or one per layer."""
        if len(self.kernel_sizes) != self.num_hidden_layers or min(self.kernel_sizes) < 1:
            raise ValueError(
                f"`kernel_size` must be a number from 1 up, or one per layer ({self.num_hidden_layers}), "
                f"got {self.kernel_size}"
            )

    def validate_connection(self):
        """Part of `@strict`-powered validation: a residual block has a norm, and it alone an MLP."""
        if self.connection == "residual" and self.norm is None:
            raise ValueError("`norm` must be 'layer_norm' or 'rms_norm' with connection='residual', got None")
        if self.norm is not None and self.norm_eps == 0:  # at a pad, which is zero, the gradient would be NaN
            raise ValueError(f"`norm_eps` must be above 0 with norm={self.norm!r}, got {self.norm_eps}")
        if self.intermediate_size is not None and self.connection != "residual":
            raise ValueError(
                f"`intermediate_size` must be None unless connection='residual', got {self.intermediate_size} "
                f"with connection={self.connection!r}"
            )

    def validate_directions(self):
        """Part of `@strict`-powered validation: two directions share each width, and there is no state to carry."""
        if not self.bidirectional:
            return
        if self.hidden_size % 2:
            raise ValueError(
                f"`hidden_size` must be even in a bidirectional model, half per direction, got {self.hidden_size}"
            )
        if self.use_cache:
            raise ValueError(
                "`use_cache` must be False or None in a bidirectional model, got True: its backward direction starts "
                "at the end, so there is no state to go on from"
            )


@strict
class QRNNTextConfig(QRNNStackConfig):
    r"""What the configurations of models of text share: tokens and embeddings. `QRNNConfig` describes the fields.

    Example:
        >>> QRNNTextConfig(embedding_size=32, hidden_size=64).layer_sizes
        [(32, 64), (64, 64)]
    """

    vocab_size: int = _size(default=10_000)
    embedding_size: int | None = _size_or_none(default=None)
    embedding_dropout: float | int = _probability(default=0.0)
    embedding_initializer_range: float | int | None = _weight_or_none(default=None)
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    lm_head_bias: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        if self.embedding_initializer_range is None:
            without_norm = 0.3 if self.tie_word_embeddings else 1.0
            self.embedding_initializer_range = self.initializer_range if self.norm is not None else without_norm

    @property
    def input_size(self) -> int:
        """The width of the token embeddings and of `inputs_embeds`."""
        return self.embedding_size or self.hidden_size


@strict
class QRNNClassifierConfig(QRNNStackConfig):
    r"""What the configurations of models that may classify a whole sequence share: a stack, and a read-out over it.

    `QRNNConfig` describes the fields.

    Example:
        >>> QRNNClassifierConfig(classifier_pooling="concat").classifier_pooling
        'concat'
    """

    classifier_pooling: Literal["last", "max", "mean", "concat"] = "last"
    classifier_dropout: float | int | None = _probability_or_none(default=None)
    classifier_hidden_size: int | None = _size_or_none(default=None)


@strict
class QRNNConfig(QRNNTextConfig, QRNNClassifierConfig):
    r"""The configuration of a QRNN. The defaults are the architecture of the paper's language model, without dropout.

    Args:
        vocab_size (`int`, defaults to 10000):
            Number of tokens.
        embedding_size (`int`, *optional*, defaults to `hidden_size`):
            Width of the token embeddings. Plain and dense stacks with tied embeddings end in a layer of this width. A
            residual model has a linear layer from it where it differs from `hidden_size`, and one back before a tied
            head.
        hidden_size (`int`, defaults to 640):
            Width of the layers; in a bidirectional model each direction has half of it.
        num_hidden_layers (`int`, defaults to 2):
            Number of layers.
        kernel_size (`int` or `list[int]`, defaults to 2):
            Width of the convolutions, one for all layers or one per layer.
        pooling (`str`, defaults to `"fo"`):
            Recurrent pooling, `"f"`, `"fo"` or `"ifo"` (equations 3 to 5 of the paper).
        candidate_activation (`str`, defaults to `"tanh"`):
            Activation of the candidate `z`: `"tanh"`, `"identity"` or `"relu"`.
        connection (`str`, defaults to `"plain"`):
            `"plain"` stacks the layers; `"dense"` feeds each layer the embeddings and the outputs of all layers below
            (section 2.1 of the paper); `"residual"` is the pre-norm block `x + W_o QRNN(norm(x))`.
        norm (`str`, *optional*):
            `"layer_norm"` or `"rms_norm"` on the input of each layer and before the head. `None` is no normalisation,
            except in residual models, where it becomes `"rms_norm"`.
        norm_eps (`float`, defaults to 1e-6):
            What the normalisation adds to the variance.
        intermediate_size (`int`, *optional*):
            Width of a gated MLP (SiLU) after each residual QRNN block; `None` for no MLP.
        bidirectional (`bool`, defaults to `False`):
            Read in both directions, with separate weights; upper layers see both. For encoders.
        forget_bias (`float`, defaults to 0.0):
            Initial bias of the forget gate; positive values make units remember longer at first.
        zoneout (`float`, defaults to 0.0):
            Probability with which a unit keeps its state in training (equation 6).
        embedding_dropout (`float`, defaults to 0.0):
            Probability with which a word is dropped from the embedding matrix, everywhere in the batch.
        input_dropout (`float`, defaults to 0.0):
            Dropout on the input of the first layer.
        hidden_dropout (`float`, defaults to 0.0):
            Dropout between layers, and on both branches of a residual block.
        output_dropout (`float`, defaults to 0.0):
            Dropout before the head.
        weight_dropout (`float`, defaults to 0.0):
            Probability with which single weights of the gate projections are dropped (DropConnect).
        locked_dropout (`bool`, defaults to `False`):
            One dropout mask for all time steps, as AWD-QRNN has it; the paper's dropout draws each step anew.
        activation_regularization (`float`, defaults to 0.0):
            Weight of the mean square of the causal language model's dropped-out output in its training loss (AR). Like
            the next one it needs the model to see the labels, which `Trainer` withholds under label smoothing.
        temporal_activation_regularization (`float`, defaults to 0.0):
            Weight of the mean square of that output's change from step to step, before dropout (TAR).
        classifier_pooling (`str`, defaults to `"last"`):
            How a sequence becomes one vector: `"last"` (the last real token; with two directions only the first half
            of its channels, and the second half of the first token: the ends of the directions, but for residual
            blocks, which mix them), `"max"`, `"mean"`, or `"concat"`, all three side by side.
        classifier_dropout (`float`, *optional*):
            Dropout before a classification head; `output_dropout` if `None`.
        classifier_hidden_size (`int`, *optional*):
            Width of a hidden layer in the sequence classification head, with batch normalisation as in MultiFiT, which
            cannot train on a batch of one row (`dataloader_drop_last=True` in `Trainer`); `None` for one linear layer.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the initial weights, but for those of the next two fields.
        gate_initializer_range (`float`, *optional*):
            Standard deviation of the gate projections' initial weights. `None` is torch's own
            `uniform(-1/sqrt(fan_in), 1/sqrt(fan_in))`, which suits any width. Under plain SGD with clipped gradients
            the paper's language model (width 640) learned faster with wider gates and narrower embeddings together,
            0.06 and 0.3.
        embedding_initializer_range (`float`, *optional*):
            Standard deviation of initial embeddings. `None` is `initializer_range` where a norm follows. Without norms
            so small an input would starve the layers, each of which shrinks it further: there it is 1, and 0.3 if the
            head is tied.
        use_cache (`bool`, *optional*):
            Whether to return the recurrent state; by default all but bidirectional models do.
        pad_token_id (`int`, *optional*):
            The token that fills up a batch; what is a pad is told by `attention_mask` alone.
        bos_token_id (`int`, *optional*):
            The token that begins a text.
        eos_token_id (`int` or `list[int]`, *optional*):
            The tokens that end a text.
        tie_word_embeddings (`bool`, defaults to `False`):
            Whether the head shares the weights of the embeddings.
        lm_head_bias (`bool`, defaults to `False`):
            Whether a language model's head has a bias, which starts from zero. The models of the paper, AWD-QRNN and
            MultiFiT have one; under plain SGD it learns how frequent each word is long before the weights do.

    Raises:
        StrictDataclassFieldValidationError: for a field of a wrong type or outside its range.
        StrictDataclassClassValidationError: for fields that do not fit together.

    Example:
        >>> config = QRNNConfig(hidden_size=256, num_hidden_layers=4, connection="residual", intermediate_size=512)
        >>> config.norm, config.embedding_size
        ('rms_norm', 256)
    """

    model_type = "qrnn"
    keys_to_ignore_at_inference = ["cache"]

    activation_regularization: float | int = _weight(default=0.0)
    temporal_activation_regularization: float | int = _weight(default=0.0)

    @property
    def layer_widths(self) -> list[int]:
        """The channels out of each layer's QRNN, both directions together."""
        outputs = super().layer_widths
        if self.tie_word_embeddings and self.connection != "residual":
            outputs[-1] = self.input_size
        return outputs

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """How Transformers shards the layers for tensor parallelism.

        The weights are split, not the channels: the gates are gathered, so that each process has the whole state, to
        carry and to save.
        """
        plan = {"layers.*.mixer.directions.*.gate_proj": "colwise_gather_output"}
        if self.connection == "residual":
            plan["layers.*.out_proj"] = "rowwise_split_input"
        if self.intermediate_size is not None:
            plan |= {"layers.*.mlp.gate_up_proj": "packed_colwise", "layers.*.mlp.down_proj": "rowwise"}
        return plan

    @property
    def base_model_pp_plan(self) -> dict[str, tuple[list[str], list[str]]] | None:
        """Where Transformers cuts the model for pipeline parallelism: between layers, if all widths are equal."""
        if self.connection == "dense" or {self.input_size, *self.layer_widths} != {self.hidden_size}:
            return None
        return {
            "embed_tokens": (["input_ids"], ["inputs_embeds"]),
            "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
            "norm": (["hidden_states"], ["hidden_states"]),
        }

    def validate_tied_width(self):
        """Part of `@strict`-powered validation: a stack that ends in the width of its embeddings halves that too."""
        if self.bidirectional and self.output_size % 2:
            raise ValueError(
                f"`embedding_size` must be even in a bidirectional model, half per direction, got {self.output_size}"
            )


@strict
class QRNNSeq2SeqConfig(QRNNTextConfig):
    r"""The configuration of a QRNN encoder-decoder. The defaults are the paper's for translation, of 320 channels.

    Further fields are those of `QRNNConfig` that say what the tokens, the embeddings and the stack are (`vocab_size`,
    `embedding_size`, `pooling`, `connection`, `norm`, the dropouts and so on); they hold for the encoder and for the
    decoder, but a field that has a twin with the prefix `encoder_` is the decoder's.

    Args:
        vocab_size (`int`, defaults to 10000):
            Number of tokens. Source and target share one vocabulary and its embeddings; `tie_word_embeddings` has the
            head share them too, through a linear layer back if `embedding_size` is not `hidden_size`.
        hidden_size (`int`, defaults to 320):
            Width of all layers.
        encoder_layers (`int`, defaults to 4):
            Number of layers of the encoder.
        decoder_layers (`int`, defaults to 4):
            Number of layers of the decoder; `num_hidden_layers` is the same field. If it has fewer than the encoder,
            the last states of the encoder's upper layers enter it; if more, that of the first one enters several.
        encoder_kernel_size (`int` or `list[int]`, *optional*):
            Width of the encoder's convolutions, which are centred on their token. `None` is the paper's: 6 in the
            first layer, 2 in the others.
        kernel_size (`int` or `list[int]`, defaults to 2):
            Width of the decoder's convolutions.
        encoder_bidirectional (`bool`, defaults to `False`):
            Read the source in both directions, each with half of the channels.
        encoder_reverse (`bool`, *optional*):
            Read the source from its end, as the paper does. By default all but bidirectional encoders do.
        attention_layers (`str`, defaults to `"last"`):
            Which layers of the decoder look back at the source: the `"last"` (the paper's) or `"all"`.
        num_attention_heads (`int`, *optional*):
            `None` is the paper's attention, the dot product of the decoder's state and the encoder's output as they
            are. A number is that of heads with learned projections and a scaled product.
        attention_dropout (`float`, defaults to 0.0):
            Dropout on the weights of the attention.
        initializer_range (`float`, defaults to 0.02):
            As in `QRNNConfig`, but for the projections of the attention and, in a decoder without norms, all linear
            layers, which start from torch's own `uniform(-1/sqrt(fan_in), 1/sqrt(fan_in))`.
        decoder_start_token_id (`int`, *optional*):
            The token that the target begins with; `bos_token_id` if `None`.

    Raises:
        StrictDataclassFieldValidationError: for a field of a wrong type or outside its range.
        StrictDataclassClassValidationError: for fields that do not fit together.

    Example:
        >>> config = QRNNSeq2SeqConfig(encoder_layers=3)
        >>> config.encoder_kernel_size, config.encoder_reverse, config.decoder_layers, config.kernel_sizes
        ([6, 2, 2], True, 4, [2, 2, 2, 2])
    """

    model_type = "qrnn_seq2seq"
    keys_to_ignore_at_inference = ["cache"]
    # What Transformers reads of the depth, for the cache above all, is the decoder's.
    attribute_map = {"decoder_layers": "num_hidden_layers"}

    hidden_size: int = _size(default=320)
    num_hidden_layers: int = _size(default=4)
    encoder_layers: int = _size(default=4)
    encoder_kernel_size: int | list[int] | None = None
    encoder_bidirectional: bool = False
    encoder_reverse: bool | None = None
    attention_layers: Literal["last", "all"] = "last"
    num_attention_heads: int | None = None
    attention_dropout: float | int = _probability(default=0.0)
    decoder_start_token_id: int | None = None
    is_encoder_decoder: bool = True

    def __post_init__(self, **kwargs):
        if "decoder_layers" in kwargs:
            self.num_hidden_layers = kwargs.pop("decoder_layers")  # under the name by which it is checked
        if self.encoder_kernel_size is None:
            self.encoder_kernel_size = [6] + [2] * (self.encoder_layers - 1)
        if self.encoder_reverse is None:
            self.encoder_reverse = not self.encoder_bidirectional
        super().__post_init__(**kwargs)

    def encoder_config(self) -> "QRNNSeq2SeqConfig":
        """A copy that describes the encoder's stack in the fields that otherwise are the decoder's."""
        config = copy.copy(self)
        config.is_encoder_decoder = config.use_cache = False
        config.num_hidden_layers = self.encoder_layers
        config.kernel_size = cast(int | list[int], self.encoder_kernel_size)
        config.bidirectional = self.encoder_bidirectional
        return config

    def validate_decoder(self):
        """Part of `@strict`-powered validation: a decoder cannot read what it is to write."""
        if self.is_encoder_decoder and self.bidirectional:
            raise ValueError(
                "`bidirectional` must be False in an encoder-decoder, got True: it would be the decoder's. "
                "Set `encoder_bidirectional`"
            )

    def validate_encoder(self):
        """Part of `@strict`-powered validation: what `QRNNStackConfig` checks of the decoder."""
        sizes = _per_layer(cast(int | list[int], self.encoder_kernel_size), self.encoder_layers)
        if len(sizes) != self.encoder_layers or min(sizes) < 1:
            raise ValueError(
                "`encoder_kernel_size` must be a number from 1 up, one per layer of the encoder "
                f"({self.encoder_layers}), or None, got {self.encoder_kernel_size}"
            )
        if self.encoder_bidirectional and self.hidden_size % 2:
            raise ValueError(
                f"`hidden_size` must be even with encoder_bidirectional=True, half per direction, "
                f"got {self.hidden_size}"
            )
        if self.encoder_bidirectional and self.encoder_reverse:
            raise ValueError(
                "`encoder_reverse` must be False or None with encoder_bidirectional=True, got True: both directions "
                "are read anyway"
            )

    def validate_attention(self):
        """Part of `@strict`-powered validation: heads share the channels."""
        heads = self.num_attention_heads
        if heads is not None and (heads < 1 or self.hidden_size % heads):
            raise ValueError(
                f"`num_attention_heads` must be None or a divisor of hidden_size={self.hidden_size}, got {heads}"
            )


@strict
class QRNNSpeechConfig(QRNNClassifierConfig):
    r"""The configuration of a QRNN that reads audio, as frames of log-mel features.

    Of the fields below, and of those of `QRNNConfig` that say what the stack and the classifier are (`hidden_size`,
    `num_hidden_layers`, `kernel_size`, `pooling`, `connection`, `norm`, `bidirectional`, the dropouts,
    `classifier_pooling` and so on), these differ from there:

    Args:
        num_mel_bins (`int`, defaults to 80):
            Features of a frame: `feature_size` of the feature extractor.
        hop_length (`int`, defaults to 160):
            Samples from one frame to the next, as in the feature extractor; time stamps rest on it.
        stride (`int`, defaults to 2):
            The front end is a convolution over so many frames, which moves on by as many.
        temporal_pooling (`str`, *optional*):
            `"max"` or `"average"`: what makes one step out of `temporal_pooling_size` outputs of that convolution.
        temporal_pooling_size (`int`, defaults to 2):
            How many of them become one; means nothing without `temporal_pooling`.
        mask_time_prob (`float`, defaults to 0.0):
            SpecAugment in training: the approximate share of the frames that is hidden, in spans.
        mask_time_length (`int`, defaults to 10):
            Length of such a span, in frames.
        mask_feature_prob (`float`, defaults to 0.0):
            The approximate share of the features that is hidden, throughout an utterance, in bands.
        mask_feature_length (`int`, defaults to 10):
            Width of such a band, in features.
        vocab_size (`int`, defaults to 32):
            Number of tokens that `QRNNForCTC` writes.
        pad_token_id (`int`, defaults to 0):
            The token that fills up labels, and the blank of CTC, as in Transformers' CTC tokenizers.
        ctc_loss_reduction (`str`, defaults to `"mean"`):
            `"mean"` over the batch of each loss per token, or `"sum"`.
        ctc_zero_infinity (`bool`, defaults to `False`):
            Count a label that is longer than its steps allow as zero, rather than refuse it.
        initializer_range (`float`, defaults to 0.02):
            As in `QRNNConfig`, but for the convolution over the frames, which starts from torch's own
            `uniform(-1/sqrt(fan_in), 1/sqrt(fan_in))`.
        use_cache (`bool`, defaults to `False`):
            Whether to return the recurrent state. Then, and when going on from a state, each chunk must make whole
            steps, of `subsampling_ratio` frames.

    Raises:
        StrictDataclassFieldValidationError: for a field of a wrong type or outside its range.
        StrictDataclassClassValidationError: for fields that do not fit together.

    Example:
        >>> config = QRNNSpeechConfig(stride=2, temporal_pooling="max")
        >>> config.subsampling_ratio, config.inputs_to_logits_ratio
        (4, 640)
    """

    model_type = "qrnn_speech"
    keys_to_ignore_at_inference = ["cache"]

    num_mel_bins: int = _size(default=80)
    hop_length: int = _size(default=160)
    stride: int = _size(default=2)
    temporal_pooling: Literal["max", "average"] | None = None
    temporal_pooling_size: int = _size(default=2)
    mask_time_prob: float | int = _probability(default=0.0)
    mask_time_length: int = _size(default=10)
    mask_feature_prob: float | int = _probability(default=0.0)
    mask_feature_length: int = _size(default=10)
    vocab_size: int = _size(default=32)
    pad_token_id: int = 0
    ctc_loss_reduction: Literal["mean", "sum"] = "mean"
    ctc_zero_infinity: bool = False
    use_cache: bool | None = False
    tie_word_embeddings: bool = False

    @property
    def subsampling_ratio(self) -> int:
        """How many frames make one step of the stack."""
        return self.stride * (1 if self.temporal_pooling is None else self.temporal_pooling_size)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """How many samples make one step of the stack."""
        return self.hop_length * self.subsampling_ratio

    def validate_blank(self):
        """Part of `@strict`-powered validation: the blank is one of the tokens."""
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` must lie between 0 and vocab_size - 1 = {self.vocab_size - 1}, for it is the blank "
                f"of CTC, got {self.pad_token_id}"
            )


@strict
class QRNNTimeSeriesConfig(QRNNStackConfig):
    r"""The configuration of a QRNN that forecasts.

    Further fields are those of `QRNNConfig` that say what the stack is (`num_hidden_layers`, `kernel_size`, `pooling`,
    `connection`, `norm`, the dropouts and so on).

    Args:
        hidden_size (`int`, defaults to 128):
            Width of the layers.
        prediction_length (`int`, defaults to 24):
            How many values to predict.
        context_length (`int`, *optional*):
            How many past values the model was trained on, and the `time-series-forecasting` pipeline gives it. The
            model itself takes any number. `None` for all of them.
        num_input_channels (`int`, defaults to 1):
            Number of variables.
        channel_mode (`str`, defaults to `"independent"`):
            `"independent"` forecasts each variable from its own past, with the same weights; `"mixed"` reads all of
            them as one vector per step and forecasts all.
        channel_embedding (`bool`, defaults to `False`):
            Tell the variables of an independent model apart, by a learned vector each. Without it, and without what
            else belongs to single variables (`scaling="revin"`, `value_loc`, `value_scale`), an independent model
            takes any number of them.
        num_time_features (`int`, defaults to 0):
            Number of covariates, known in the past and in the future.
        patch_length (`int`, defaults to 1):
            How many values become one step of the QRNN. The last patch ends at the last value; the first one may be
            filled up by missing values.
        scaling (`str`, *optional*, defaults to `"std"`):
            What is taken from the past of each series and put back into its forecast: `"std"` its mean and standard
            deviation; `"last"` its last value; `"last_std"` its last value and standard deviation; `"mean"` its mean
            magnitude; `"revin"` as `"std"`, with a learned scale and shift for each variable (reversible instance
            normalisation, Kim et al. 2022). `None` for nothing.
        value_loc (`list[float]`, *optional*):
            Mean of each variable in the training data: what a value is measured from where `scaling` takes none away.
        value_scale (`list[float]`, *optional*):
            Standard deviation of each variable in the training data: the unit of values where `scaling` takes none
            from the past (or the past is constant), and of the errors in the losses `"mse"`, `"mae"`, `"huber"` and
            `"quantile"`.
        horizon (`str`, defaults to `"direct"`):
            `"direct"` makes the whole forecast from the last state, by one linear layer; `"autoregressive"` makes the
            next patch, and goes on from what it has drawn.
        num_head_states (`int`, defaults to 1):
            How many of the last states the head of a direct model sees.
        loss (`str`, defaults to `"nll"`):
            What is learned: `"mse"` the mean, `"mae"` the median, `"huber"` between the two, `"nll"` the distribution
            `distribution_output` by its likelihood, `"quantile"` the `quantiles`.
        huber_delta (`float`, defaults to 1.0):
            The error, in units of `value_scale`, from which on the Huber loss is linear.
        distribution_output (`str`, defaults to `"student_t"`):
            `"student_t"`, `"normal"`, or for counts `"negative_binomial"`.
        quantiles (`list[float]`, *optional*, defaults to 0.1, 0.2, ..., 0.9):
            The quantiles that `loss="quantile"` learns, in rising order. The forecast is the median, or else the one
            nearest to it.
        num_parallel_samples (`int`, defaults to 100):
            Number of sample paths that `generate` draws.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the initial `channel_embedding`. All linear layers, the gates unless
            `gate_initializer_range` is given, start from torch's own `uniform(-1/sqrt(fan_in), 1/sqrt(fan_in))`,
            without biases.

    Raises:
        StrictDataclassFieldValidationError: for a field of a wrong type or outside its range.
        StrictDataclassClassValidationError: for fields that do not fit together.

    Example:
        >>> config = QRNNTimeSeriesConfig(prediction_length=96, patch_length=24, num_input_channels=7, loss="quantile")
        >>> config.quantiles
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    """

    model_type = "qrnn_time_series"
    keys_to_ignore_at_inference = ["cache", "params", "hidden_states", "loc", "scale"]

    hidden_size: int = _size(default=128)
    prediction_length: int = _size(default=24)
    context_length: int | None = _size_or_none(default=None)
    num_input_channels: int = _size(default=1)
    channel_mode: Literal["independent", "mixed"] = "independent"
    channel_embedding: bool = False
    num_time_features: int = interval(min=0)(default=0)
    patch_length: int = _size(default=1)
    scaling: Literal["mean", "std", "last", "last_std", "revin"] | None = "std"
    value_loc: list[float | int] | None = None
    value_scale: list[float | int] | None = None
    horizon: Literal["direct", "autoregressive"] = "direct"
    num_head_states: int = _size(default=1)
    loss: Literal["mse", "mae", "huber", "nll", "quantile"] = "nll"
    huber_delta: float | int = interval(min=0.0, exclude_min=True)(default=1.0)
    distribution_output: Literal["student_t", "normal", "negative_binomial"] = "student_t"
    quantiles: list[float] | None = None
    num_parallel_samples: int = _size(default=100)

    def __post_init__(self, **kwargs):
        if self.quantiles is None:
            self.quantiles = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
        super().__post_init__(**kwargs)

    @property
    def has_own_channels(self) -> bool:
        """Whether something belongs to single variables, so that their number is fixed."""
        is_special = self.channel_embedding or self.scaling == "revin"
        return self.channel_mode == "mixed" or is_special or self.value_loc is not None or self.value_scale is not None

    def validate_direction(self):
        """Part of `@strict`-powered validation: the state goes on into the future."""
        if self.bidirectional:
            raise ValueError("`bidirectional` must be False in a model of time series, got True")

    def validate_lengths(self):
        """Part of `@strict`-powered validation: one state for each patch."""
        if self.horizon == "autoregressive" and self.num_head_states != 1:
            raise ValueError(
                f"`num_head_states` must be 1 with horizon='autoregressive', which makes each patch from the state "
                f"before it, got {self.num_head_states}"
            )

    def validate_channels(self):
        """Part of `@strict`-powered validation: what is said of each variable is said of all."""
        if self.channel_embedding and self.channel_mode == "mixed":
            raise ValueError(
                "`channel_embedding` must be False with channel_mode='mixed', where each variable has weights of its "
                "own, got True"
            )
        for name in ("value_loc", "value_scale"):
            values = getattr(self, name)
            if values is not None and len(values) != self.num_input_channels:
                raise ValueError(
                    f"`{name}` must be None or one number for each of the {self.num_input_channels} input channels, "
                    f"got {len(values)}"
                )
            if values is not None and not all(map(math.isfinite, values)):
                raise ValueError(f"`{name}` must be finite, got {values}")
        if self.value_scale is not None and min(self.value_scale) <= 0:
            raise ValueError(f"`value_scale` must be above zero, got {self.value_scale}")

    def validate_output(self):
        """Part of `@strict`-powered validation: quantiles in order; counts are scaled, but not shifted."""
        quantiles = self.quantiles or []
        if not quantiles or sorted(set(quantiles)) != quantiles or min(quantiles) <= 0 or max(quantiles) >= 1:
            raise ValueError(f"`quantiles` must rise within (0, 1), got {self.quantiles}")
        if self.loss != "nll" or self.distribution_output != "negative_binomial":
            return
        if self.scaling not in (None, "mean") or self.value_loc is not None:
            raise ValueError(
                "`scaling` must be 'mean' or None, and `value_loc` None, with "
                f"distribution_output='negative_binomial', for counts start at zero: got {self.scaling!r} and "
                f"{self.value_loc}"
            )


__all__ = [
    "QRNNClassifierConfig",
    "QRNNConfig",
    "QRNNSeq2SeqConfig",
    "QRNNSpeechConfig",
    "QRNNStackConfig",
    "QRNNTextConfig",
    "QRNNTimeSeriesConfig",
]
