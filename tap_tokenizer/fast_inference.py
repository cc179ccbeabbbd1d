"""TAP's answers with a fraction of the work, for when no gradient is asked; and why they are the same.

The plain formulation (`image_encoder.py`, `image_decoder.py`, `text_decoder.py`) says what is computed, trains, and is what
tests and benchmarks compare with. Here are the same sums in another order.

**Pictures** (`FastImageEncoder`). Attention never leaves a window, so the windows of a group of blocks go through it a few
at a time and stay in the cache. Position biases are gathered once per weight, and handed to PyTorch in four dimensions:
with three it takes a slow kernel. On request, linear layers compute in int8, which is close, but not the same.

**Regions** (`FastImageDecoder`). The plain decoder keeps a picture of its own for every region, G² rows of width D, and sends
them all through every projection. But a region changes a picture very little: tokens write into it by attention, so a row
gains a mixture of as many vectors as there are tokens and heads; LayerNorm then centres and scales. With X the rows that
all regions of a picture share, U (M, D) what this region's tokens have written, C (M, G²) how much of it each row took,
ρ (G²) a scale for each row, γ and β the last LayerNorm's weight and bias, the picture as a region sees it always is

    image = ρ · (X + Cᵀ U) + β.

- *Writing.* Rows attend to tokens with weights A and gain Aᵀ V, V the tokens' values through the output matrix. The weights
  of a head add up to 1, so biases, and β, can be shared out among V. C grows by A / ρ, U by V.
- *LayerNorm.* Centring and γ are linear and pass to X and U. ρ becomes one over the rows' standard deviation, whose square
  is |X|² + 2 X · Cᵀ U + Cᵀ (U Uᵀ) C over D: no row is ever formed.
- *Reading.* A token scores a row by q · W image = ρ · ((q · W X) + (q · W U) C) + q · W (position + β). W X is shared, W U is
  small. Values likewise: Σ w · W image = (W X)(ρ w) + (W U)(C ρ w) + W β.

X, and all that the weights make of it, is computed once per picture (`_Picture`), what follows from weights alone once per
weight (`_Plan`). Tokens whose answer nobody reads do not look at the picture a last time; masks are made for who asks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .image_decoder import TapDecoderAttention, TapImageDecoder, TapImageDecoderOutput, TapTwoWayLayer
from .image_encoder import TapImageEncoder, TapImageEncoderLayer, TapWindowAttention
from .int8_linear import Int8Linear, weights_elsewhere
from .prompt_encoder import TapPromptEncoder

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 4 * 64**2  # of all regions' pictures: four regions with the original's grid
_PLACES_AT_ONCE = 1024
_WINDOWS_AT_ONCE = 4
"""What fits the caches of a CPU. Other devices want more work at a time: as many regions and windows as there are."""

Wanted = Callable[[Tensor, Tensor], Tensor]
"""Regions (N,) by their rows, and their IoU scores (N, K) → which of their masks are made, (N, K)."""
_PAIRS = {2: torch.int32, 4: torch.int64, 8: torch.complex128}
"""What two numbers of so many bytes can be moved as."""


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors up to 32 MB, as it does once it has seen such a block freed.

    Before, it gives them back to the system, which hands them out again page by page, as slowly as some layers compute.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


class FastImageEncoder:
    """What `TapImageEncoder.forward` computes in evaluation mode.

    precision: with "int8", the linear layers of the blocks compute in it. Weights that have been moved from float32 on a CPU
    compute in their own dtype, after a warning. is_compiled: whether `torch.compile` has the operations.
    """

    def __init__(self, encoder: TapImageEncoder) -> None:
        self.encoder = encoder
        self.precision = "float32"
        self.is_compiled = False
        self._biases: list[Tensor] = []
        self._rounded: dict[nn.Module, Int8Linear] = {}
        self._state: object = None
        self._has_warned = False

    @property
    def precision_in_use(self) -> str:
        """In what linear layers compute now: "int8", or "float32", which stands for the dtype of the weights."""
        return "float32" if weights_elsewhere(self.encoder.layers) else self.precision

    def forget(self) -> None:
        """Prepare again at the next call, because weights may have changed."""
        self._biases, self._rounded, self._state = [], {}, None

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Pixel values (B, 3, S, S) → image embeddings (B, D, G, G)."""
        keep_freed_memory()
        self._prepare()
        encode = _compiled_encoding() if self.is_compiled else FastImageEncoder._encode
        return encode(self, pixel_values)

    def _encode(self, pixel_values: Tensor) -> Tensor:
        encoder, biases = self.encoder, self._biases
        grid = encoder.embed_patches(pixel_values)
        few = grid.device.type == "cpu" and not self.is_compiled  # a compiler would unroll a loop over windows
        at_once = _WINDOWS_AT_ONCE if few else len(grid) * encoder.config.grid_size**2
        blocks = len(encoder.layers) // len(encoder.cross_window_layers)
        for group, cross_window_layer in enumerate(encoder.cross_window_layers):
            done = []
            for windows in encoder.split_windows(grid).split(at_once):
                for number in range(group * blocks, (group + 1) * blocks):
                    layer = cast(TapImageEncoderLayer, encoder.layers[number])
                    windows = windows + self._attend(layer.attention, layer.norm1(windows), biases[number])
                    inner = F.gelu(self._linear(layer.mlp[0], layer.norm2(windows)))
                    windows = windows + self._linear(layer.mlp[2], inner)
                done.append(encoder.norm(windows) if group == len(encoder.cross_window_layers) - 1 else windows)
            grid = cross_window_layer(encoder.merge_windows(torch.cat(done)))
        return encoder.neck(rearrange(grid, "b y x d -> b d y x"))

    def _attend(self, attention: TapWindowAttention, windows: Tensor, bias: Tensor) -> Tensor:
        heads = self.encoder.config.num_attention_heads
        qkv = self._linear(attention.qkv, windows)
        query, key, value = rearrange(qkv, "n t (three h d) -> three n h t d", three=3, h=heads)
        hidden = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self._linear(attention.output, rearrange(hidden, "n h t d -> n t (h d)"))

    def _linear(self, layer: nn.Module, rows: Tensor) -> Tensor:
        compute = self._rounded.get(layer, layer) if self.precision == "int8" else layer
        found: Tensor = compute(rows)
        return found

    def _prepare(self) -> None:
        """Gather the bias of every block (1, heads, w², w²), and round weights, once for each state of the weights."""
        layers = self.encoder.layers
        state = state_of(layers.parameters())
        if state != self._state:
            attentions = [cast(TapImageEncoderLayer, layer).attention for layer in layers]
            self._biases = [attention.position_bias().unsqueeze(0) for attention in attentions]
            self._rounded, self._state = {}, state
        if self.precision == "int8" and not self._rounded:
            if places := weights_elsewhere(layers):
                self._warn(places)
                return
            self._rounded = {layer: Int8Linear(layer) for layer in layers.modules() if isinstance(layer, nn.Linear)}

    def _warn(self, places: str) -> None:
        if not self._has_warned:
            logger.warning(
                "encoder_precision is 'int8', but the weights are now in %s, and so the image encoder computes in that. Move "
                "them to float32 on the CPU, or set encoder_precision to 'float32'.",
                places,
            )
        self._has_warned = True


@lru_cache(maxsize=1)
def _compiled_encoding() -> Callable[[FastImageEncoder, Tensor], Tensor]:
    """One for all encoders, which it gets as an argument, so that a copied model does not compute with the first one's."""
    compiled: Callable[[FastImageEncoder, Tensor], Tensor] = torch.compile(FastImageEncoder._encode)
    return compiled


class FastImageDecoder:
    """What `TapImageDecoder.forward` computes in evaluation mode, for many regions of few pictures."""

    def __init__(self, decoder: TapImageDecoder, prompt_encoder: TapPromptEncoder) -> None:
        self.decoder = decoder
        self.prompt_encoder = prompt_encoder
        self._plans: dict[int, _Plan] = {}  # by the grid's side: a screen of points looks at a smaller one
        self._state: object = None

    def forget(self) -> None:
        """Prepare again at the next call, because weights may have changed."""
        self._plans, self._state = {}, None

    def __call__(
        self,
        image_embeddings: Tensor,
        image_index: Tensor,
        prompt_embeddings: Tensor,
        prompt_mask: Tensor | None = None,
        output_masks: bool = True,
        wanted: Wanted | None = None,
    ) -> TapImageDecoderOutput:
        """As `TapImageDecoder.forward`, for pictures (B, D, G, G) and the picture of each region, image_index (R,), R > 0.

        wanted: says of regions and their IoU scores (N, K) which masks are made (N, K); pred_masks are then (M, 4G, 4G), in
        the order of regions and experts.
        """
        keep_freed_memory()
        decoder, plan = self.decoder, self._current_plan(image_embeddings.shape[-1])
        learned = torch.cat([decoder.semantic_tokens, decoder.iou_token, decoder.mask_tokens])
        tokens = torch.cat([learned.expand(len(prompt_embeddings), -1, -1), prompt_embeddings], dim=1)
        token_mask = None if prompt_mask is None else F.pad(prompt_mask, (len(learned), 0), value=True)
        grid_size = image_embeddings.shape[-1]
        at_once = max(1, _ROWS_AT_ONCE // grid_size**2) if tokens.device.type == "cpu" else len(tokens)
        found: dict[str, Tensor] = {}
        chosen: list[Tensor] = []
        masks: list[Tensor] = []
        for index in image_index.unique().tolist():
            regions = (image_index == index).nonzero().squeeze(1)
            alone = len(regions) == 1  # what would be shared is not worth computing
            picture = None if alone else _Picture(plan, image_embeddings[index], output_masks)
            for rows in regions.split(at_once):
                if picture is None:
                    mask = None if prompt_mask is None else prompt_mask[rows]
                    inputs = image_embeddings[index : index + 1], plan.positions, prompt_embeddings[rows], mask
                    parts = dict(decoder(*inputs, output_masks=output_masks))
                    choice = None if wanted is None else wanted(rows, parts["iou_scores"])
                    if choice is not None and output_masks:
                        parts["pred_masks"] = parts["pred_masks"][choice]
                else:
                    mask = None if token_mask is None else token_mask[rows]
                    parts, choice = self._decode(plan, picture, rows, tokens[rows], mask, output_masks, wanted)
                if choice is not None and output_masks:
                    masks.append(parts.pop("pred_masks"))
                    chosen += [rows[own] * choice.shape[1] + expert for own, expert in [choice.nonzero().unbind(1)]]
                for name, part in parts.items():
                    found.setdefault(name, part.new_empty(len(tokens), *part.shape[1:]))[rows] = part
        if masks:
            found["pred_masks"] = torch.cat(masks)[torch.cat(chosen).argsort()]
        return TapImageDecoderOutput(**found)

    def _decode(
        self,
        plan: _Plan,
        picture: _Picture,
        rows: Tensor,
        tokens: Tensor,
        token_mask: Tensor | None,
        output_masks: bool,
        wanted: Wanted | None,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """A few regions of one picture, line by line what `TapTwoWayTransformer` does; and which masks were wanted."""
        decoder, experts = self.decoder, self.decoder.config.num_experts
        positions = tokens
        mask = None if token_mask is None else token_mask[:, None, None, :]
        seen = _Seen(picture)
        for stage, layer in zip(plan.stages, cast("list[TapTwoWayLayer]", list(decoder.transformer.layers))):
            if layer.is_first:
                tokens = layer.norm1(layer.self_attention(tokens, tokens, tokens, mask))
            else:
                placed = tokens + positions
                tokens = layer.norm1(tokens + layer.self_attention(placed, placed, tokens, mask))
            tokens = layer.norm2(tokens + seen.read(layer.token_to_image, stage, tokens + positions))
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            seen.write(layer, stage, tokens + positions, tokens, mask)
        asked = slice(None, experts + 1 + (experts if output_masks else 0))  # semantic, IoU, mask tokens; no prompt
        tokens, positions = tokens[:, asked], positions[:, asked]
        final = decoder.transformer.final_attention
        tokens = decoder.transformer.norm(tokens + seen.read(final, plan.stages[-1], tokens + positions))
        found = {
            "iou_scores": decoder.iou_head(tokens[:, experts]).float(),
            "semantic_tokens": tokens[:, :experts],
            "semantic_embeds": decoder.semantic_head(tokens[:, :experts]),
        }
        choice = wanted(rows, found["iou_scores"]) if wanted is not None else None
        if output_masks:
            kernels = [head(tokens[:, experts + 1 + k]) for k, head in enumerate(decoder.mask_heads)]
            found["pred_masks"] = seen.masks(decoder, plan, torch.stack(kernels, dim=1), choice)
        return found, choice

    def _current_plan(self, grid_size: int) -> _Plan:
        weights = [*self.decoder.parameters(), self.prompt_encoder.coord_matrix]
        state = state_of(weights)
        if state != self._state:
            self._plans, self._state = {}, state
        if grid_size not in self._plans:
            self._plans[grid_size] = _Plan(self.decoder, self.prompt_encoder.encode_grid(grid_size))
        return self._plans[grid_size]


class _Stage:
    """What one layer, or the last attention (which writes nothing), does to rows of the picture.

    projections[…] (heads, c, D) make keys and values that tokens read, and the queries with which rows read tokens;
    places[…] (heads, c, G²) are what they make of a row's position, and of β. output (heads, c + 1, D) makes rows of U of
    a value and the constant 1; written has it, and those of the layers before, as this layer's LayerNorm will see them.
    """

    def __init__(
        self,
        read: TapDecoderAttention,
        write: TapDecoderAttention | None,
        positions: Tensor,
        shift: Tensor,
        written: list[Tensor],
    ) -> None:
        linear = {"keys": read.key, "values": read.value} | ({"queries": write.query} if write else {})
        split = "(h c) d -> h c d"
        heads = read.config.num_attention_heads
        self.projections = {name: rearrange(layer.weight, split, h=heads) for name, layer in linear.items()}
        self.places = {
            name: _heads(read, layer(positions + shift)).mT.contiguous()
            for name, layer in linear.items()
            if name != "values"
        }
        value_shift = (read.value.weight * shift).sum(dim=1) + read.value.bias
        self.value_shift = rearrange(value_shift, "(h c) -> h 1 c", h=heads)
        self.written: list[Tensor] = []
        if write is not None:
            values = rearrange(write.output.weight, "d (h c) -> h c d", h=heads)
            constant = ((write.output.bias + shift) / heads).expand(heads, 1, -1)
            self.output = torch.cat([values, constant], dim=1)
            self.written = [_centred(rows) for rows in (*written, self.output)]
        blocks = [*self.projections.values(), *self.written]
        self.weights = torch.cat([block.flatten(0, 1) for block in blocks])
        self.sizes = [block.shape[0] * block.shape[1] for block in blocks]

    def project(self, name: str, rows: Tensor) -> Tensor:
        """Rows (R, M, D) through a projection, head by head: (R, heads, M, c)."""
        weight = self.projections[name]
        return rearrange(F.linear(rows, weight.flatten(0, 1)), "r m (h c) -> r h m c", h=len(weight))


class _Plan:
    """What follows from the decoder's weights and the grid's positions alone."""

    def __init__(self, decoder: TapImageDecoder, positions: Tensor) -> None:
        self.positions = positions
        self.grid_size = math.isqrt(len(positions))
        self.heads = decoder.config.num_attention_heads
        self.stages: list[_Stage] = []
        self.norms: list[nn.LayerNorm] = []
        shift = torch.zeros_like(positions[0])
        written: list[Tensor] = []
        for layer in cast("list[TapTwoWayLayer]", list(decoder.transformer.layers)):
            stage = _Stage(layer.token_to_image, layer.image_to_token, positions, shift, written)
            self.stages.append(stage)
            self.norms.append(layer.norm4)
            written, shift = [layer.norm4.weight * rows for rows in stage.written], layer.norm4.bias
        self.stages.append(_Stage(decoder.transformer.final_attention, None, positions, shift, written))
        upscaler = decoder.mask_upscaler
        self.upscale1 = rearrange(upscaler.conv1.weight, "d o i j -> d (i j o)")
        biases = [cast(Tensor, conv.bias).repeat(4) for conv in (upscaler.conv1, upscaler.conv2)]
        self.upscale1_shift = shift @ self.upscale1 + biases[0]
        self.upscale2 = rearrange(upscaler.conv2.weight, "d o i j -> (i j o) d").contiguous()
        self.upscale2_bias = biases[1]


class _Picture:
    """What all regions of a picture share: X at each stage, through every projection that will read it."""

    def __init__(self, plan: _Plan, embedding: Tensor, with_masks: bool) -> None:
        rows = embedding.flatten(1)  # X: (D, G²)
        self.tables: list[dict[str, Tensor]] = []
        self.written: list[list[Tensor]] = []
        self.squares: list[Tensor] = []
        for number, stage in enumerate(plan.stages):
            parts = [part.unflatten(0, (plan.heads, -1)) for part in (stage.weights @ rows).split(stage.sizes)]
            self.tables.append(dict(zip(stage.projections, parts)))
            self.written.append(parts[len(stage.projections) :])  # stage.written is centred: X need not be
            if number < len(plan.norms):
                rows = rows - rows.mean(dim=0)
                self.squares.append(rows.float().square().sum(dim=0))
                rows = plan.norms[number].weight[:, None] * rows
        self.upscaled = rows.T @ plan.upscale1 if with_masks else None


class _Seen:
    """A picture as R regions see it: ρ (X + Σ Cᵀ U) + β, to which each layer adds a pair of C and U."""

    def __init__(self, picture: _Picture) -> None:
        self.picture = picture
        self.shares: list[Tensor] = []  # C: (R, heads · T, G²)
        self.rows: list[Tensor] = []  # U: (R, heads · T, D)
        self.codes: list[Tensor] = []  # the values that U was made of: (R, heads, T, c + 1)
        self.scale: Tensor | None = None  # ρ: (R, 1, G²); None as long as it is 1
        self.scaled: list[Tensor] = []  # ρ C

    @property
    def tables(self) -> dict[str, Tensor]:
        return self.picture.tables[len(self.shares)]

    def read(self, attention: TapDecoderAttention, stage: _Stage, query: Tensor) -> Tensor:
        """Tokens (R, T, D) attend to the picture: what they read, (R, T, D)."""
        weights = self._scores(_heads(attention, attention.query(query)), stage, "keys").softmax(dim=-1)
        if self.scale is not None:
            weights = weights.mul_(self.scale.unsqueeze(1))
        found = _times_shared(weights, self.tables["values"].transpose(1, 2))
        for shares, rows in zip(self.shares, self.rows):
            mixture = (weights.flatten(1, 2) @ shares.transpose(1, 2)).unflatten(1, weights.shape[1:3])
            found = found + mixture @ stage.project("values", rows)
        return attention.output(rearrange(found + stage.value_shift, "r h t c -> r t (h c)"))

    def write(self, layer: TapTwoWayLayer, stage: _Stage, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        """The picture attends to tokens (R, T, D), then passes the layer's norm."""
        attention = layer.image_to_token
        scores = self._scores(_heads(attention, attention.key(keys)), stage, "queries")
        if mask is not None:
            scores = scores.masked_fill_(~mask.transpose(-1, -2), -torch.inf)
        shares = scores.softmax(dim=2).flatten(1, 2)
        code = F.pad(_heads(attention, attention.value(values)), (0, 1), value=1.0)
        self.rows.append((code @ stage.output).flatten(1, 2))
        number = len(self.shares)
        self.codes.append(code)
        self.shares.append(shares if self.scale is None else shares.div_(self.scale))
        rows = [_centred(own) for own in self.rows]
        square = self.picture.squares[number].expand(len(code), -1)
        for j, share in enumerate(self.shares):  # |X|² + Σ C (2 X·U + U Uᵀ C), whose terms U Uᵀ are symmetric
            change = _times_shared(2 * self.codes[j], self.picture.written[number][j]).flatten(1, 2)
            for i, other in enumerate(self.shares[: j + 1]):
                products = rows[j] @ rows[i].transpose(1, 2)
                change.baddbmm_(products, other, alpha=1 if i == j else 2)
            square = square + change.mul_(share).sum(dim=1, dtype=torch.float32)
        width = rows[0].shape[-1]
        floor = layer.norm4.eps if self.scale is None else layer.norm4.eps / self.scale.squeeze(1).float() ** 2
        scale = (square.clamp(min=0) / width + floor).rsqrt().unsqueeze(1).to(keys.dtype)
        self.scale, self.scaled = scale, [share * scale for share in self.shares]
        self.rows = [layer.norm4.weight * own for own in rows]

    def masks(self, decoder: TapImageDecoder, plan: _Plan, kernels: Tensor, choice: Tensor | None) -> Tensor:
        """Mask logits (R, K, 4G, 4G), or those of a choice (R, K) alone, (M, 4G, 4G).

        `TapMaskUpscaler` with its transposed convolutions, which never overlap, as products with kernels (R, K, D / 8).
        """
        regions, places = torch.arange(len(kernels), device=kernels.device), plan.grid_size**2
        if choice is not None:
            regions = choice.any(dim=1).nonzero().squeeze(1)
            kernels, choice = kernels[regions], choice[regions]
        count, experts, _ = kernels.shape
        found = kernels.new_empty(count, experts, places, 16)
        few, near = (1, _PLACES_AT_ONCE) if kernels.device.type == "cpu" else (max(1, count), places)
        for i in range(0, count, few):
            for j in range(0, places, near):
                rows, span = regions[i : i + few], slice(j, j + near)
                features = self._upscaled(decoder, plan, rows, span).flatten(1, 3)
                found[i : i + few, :, span] = (kernels[i : i + few] @ features.transpose(1, 2)).unflatten(2, (-1, 16))
        found = found if choice is None else found[choice]
        pairs = found.view(_PAIRS[found.element_size()])  # of neighbours in a row: half as many pieces to move
        size = {"y": plan.grid_size, "x": plan.grid_size, "i": 2, "j": 2, "v": 2}
        return rearrange(pairs, "... (y x) (i j v) -> ... (y i v) (x j)", **size).view(found.dtype)

    def _upscaled(self, decoder: TapImageDecoder, plan: _Plan, rows: Tensor, span: slice) -> Tensor:
        """Mask features of some regions at some places: (R, N, 4, 4, D / 8), the fours being each convolution's quarters."""
        assert self.scale is not None
        assert self.picture.upscaled is not None
        hidden = self.scale[rows, :, span].transpose(1, 2) * self.picture.upscaled[span] + plan.upscale1_shift
        for scaled, written in zip(self.scaled, self.rows):
            hidden.baddbmm_(scaled[rows, :, span].transpose(1, 2), written[rows] @ plan.upscale1)
        hidden = F.gelu(decoder.mask_upscaler.norm(hidden.unflatten(-1, (4, -1))))
        return F.gelu(F.linear(hidden, plan.upscale2, plan.upscale2_bias)).unflatten(-1, (4, -1))

    def _scores(self, probe: Tensor, stage: _Stage, name: str) -> Tensor:
        """probe (R, heads, T, c) · projection of each row of the picture, over √c: (R, heads, T, G²)."""
        probe = probe * probe.shape[-1] ** -0.5
        if self.scale is None:
            scores = _times_shared(probe, self.tables[name] + stage.places[name])
        else:
            scores = probe @ (self.tables[name] * self.scale.unsqueeze(1)).add_(stage.places[name])
        for scaled, rows in zip(self.scaled, self.rows):
            products = probe @ stage.project(name, rows).transpose(2, 3)  # (R, heads, T, M)
            scores.flatten(1, 2).baddbmm_(products.flatten(1, 2), scaled)
        return scores


def _heads(attention: TapDecoderAttention, hidden: Tensor) -> Tensor:
    return rearrange(hidden, "... t (h c) -> ... h t c", h=attention.config.num_attention_heads)


def _times_shared(own: Tensor, shared: Tensor) -> Tensor:
    """own (R, heads, T, n) @ shared (heads, n, m). A CPU would copy what is shared for every region before it begins."""
    if own.device.type != "cpu" or len(own) == 1:
        return own @ shared
    product = own.new_empty(*own.shape[:-1], shared.shape[-1])
    for one, result in zip(own, product):
        torch.bmm(one, shared, out=result)
    return product


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


def state_of(weights: Iterable[Tensor]) -> object:
    """Changes when a weight is moved, cast, loaded or trained: its place in memory, or its count of changes, does.

    Fused optimizers, and edits through `.data`, do not count; `TapModel.train` forgets for them.
    """
    return [(weight.data_ptr(), weight._version, weight.dtype) for weight in weights]
