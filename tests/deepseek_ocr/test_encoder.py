"""The parts of DeepEncoder, compared with independent implementations on random weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ocr_builders import FAST, SMALL, noisy_picture, random_encoder, randomised
from ocr_oracles import ClipOracle, EncoderOracle, SamOracle
from torch import nn

from deepseek_ocr.encoder import ClipConfig, DeepEncoder, EncoderConfig, SamConfig
from deepseek_ocr.encoder.clip import Clip
from deepseek_ocr.encoder.deep_encoder import PIXELS_PER_PASS, Views
from deepseek_ocr.encoder.sam import Sam, join_windows, split_windows
from deepseek_ocr.images import normalize, prepare_image
from deepseek_ocr.modes import ResolutionMode

WITHOUT_TILES = ResolutionMode(256, 160, crop_mode=False)
WITH_TILES = ResolutionMode(256, 160)
TALL, WIDE = (300, 640), (800, 290)  # grids (1, 2) and (3, 1)


def close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    scale = expected.abs().max().item()
    assert 0.01 < scale < 1000, "the values are too small or too large to compare"
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * scale)


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def views_of(size: tuple[int, int], mode: ResolutionMode, seed: int = 0) -> Views:
    prepared = prepare_image(noisy_picture(*size, seed=seed), mode)
    return Views(prepared.global_view, prepared.tiles, prepared.grid)


def sam_oracle(sam: Sam, config: SamConfig) -> SamOracle:
    return SamOracle(
        sam.state_dict(), heads=config.heads, global_layers=config.global_layers, window_size=config.window_size
    )


@pytest.mark.usefixtures("inference")
class TestSam:
    # 256 is the table's size; 14 and 7 patches are whole windows, the others are padded.
    @pytest.mark.parametrize("size", [64, 80, 112, 160, 224, 256, 320, 400])
    def test_windowed_and_global_layers(self, size: int) -> None:
        sam = randomised(Sam(SMALL.sam)).eval()
        pixels = torch.rand(2, 3, size, size) * 2 - 1
        close(sam(pixels), sam_oracle(sam, SMALL.sam)(pixels))

    @pytest.mark.parametrize("global_layers", [(), (0, 1)])
    def test_one_kind_of_layer_alone(self, global_layers: tuple[int, ...]) -> None:
        config = SamConfig(
            width=32,
            layers=2,
            heads=4,
            global_layers=global_layers,
            window_size=5,
            neck=8,
            downsample=(8, 16),
            table_side=8,
        )
        sam = randomised(Sam(config)).eval()
        pixels = torch.rand(1, 3, 192, 192) * 2 - 1
        close(sam(pixels), sam_oracle(sam, config)(pixels))

    def test_norms_keep_their_epsilon_where_signals_are_faint(self) -> None:
        """With a variance near epsilon, the value of epsilon matters."""
        sam = randomised(Sam(SMALL.sam)).eval()
        for parameter in (sam.patch_embed.proj.weight, sam.patch_embed.proj.bias, sam.pos_embed):
            parameter.mul_(1e-3)
        for block in sam.blocks:
            for linear in (block.attn.proj, block.mlp.lin2):
                linear.weight.mul_(1e-3)
                linear.bias.mul_(1e-3)
        sam.neck[0].weight.mul_(0.5)
        sam.neck[2].weight.mul_(1e-3)
        pixels = torch.rand(1, 3, 160, 160) * 2 - 1
        close(sam(pixels), sam_oracle(sam, SMALL.sam)(pixels))

    @pytest.mark.slow
    def test_a_layer_of_the_published_size(self) -> None:
        config = SamConfig(layers=2, global_layers=(1,))
        sam = randomised(Sam(config)).eval()
        pixels = torch.rand(1, 3, 320, 320) * 2 - 1
        out = sam(pixels)
        assert tuple(out.shape) == (1, 1024, 5, 5)
        close(out, sam_oracle(sam, config)(pixels))

    @pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 13), (1, 20), (14, 7)])
    def test_windows_are_joined_in_their_places(self, height: int, width: int) -> None:
        x = torch.randn(2, height, width, 3)
        windows = split_windows(x, 7)
        assert torch.equal(join_windows(windows, 7, height, width), x)
        down, across = -(-height // 7), -(-width // 7)
        expected = torch.zeros(2, 7 * down, 7 * across, 3)
        expected[:, :height, :width] = x
        place = 0
        for batch in range(2):
            for top in range(0, 7 * down, 7):
                for left in range(0, 7 * across, 7):
                    assert torch.equal(windows[place], expected[batch, top : top + 7, left : left + 7])
                    place += 1
        assert place == len(windows)


@pytest.mark.usefixtures("inference")
class TestClip:
    @pytest.mark.parametrize("side", [16, 10, 8, 20, 1])
    def test_at_the_tables_size_and_others(self, side: int) -> None:
        config = ClipConfig(width=32, layers=2, heads=4)
        clip = randomised(Clip(config)).eval()
        features = torch.randn(2, 32, side, side)
        close(clip(features), ClipOracle(clip.state_dict(), heads=4)(features))

    def test_norms_keep_their_epsilon_where_signals_are_faint(self) -> None:
        clip = randomised(Clip(SMALL.clip)).eval()
        clip.embeddings.class_embedding.mul_(3e-3)
        clip.embeddings.position_embedding.weight.mul_(3e-3)
        clip.pre_layrnorm.weight.mul_(3e-3)
        clip.pre_layrnorm.bias.mul_(3e-3)
        for layer in clip.transformer.layers[:-1]:
            for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                linear.weight.mul_(3e-3)
                linear.bias.mul_(3e-3)
        features = 3e-3 * torch.randn(1, 64, 6, 6)
        close(clip(features), ClipOracle(clip.state_dict(), heads=4)(features))

    def test_a_layer_of_the_published_size(self) -> None:
        clip = randomised(Clip(ClipConfig(layers=1))).eval()
        features = torch.randn(1, 1024, 10, 10)
        close(clip(features), ClipOracle(clip.state_dict(), heads=16)(features))


@pytest.fixture(scope="module")
def encoder() -> DeepEncoder:
    return random_encoder(SMALL)


@pytest.fixture(scope="module")
def oracle(encoder: DeepEncoder) -> EncoderOracle:
    return EncoderOracle(
        encoder.state_dict(),
        sam_heads=SMALL.sam.heads,
        global_layers=SMALL.sam.global_layers,
        window_size=SMALL.sam.window_size,
        clip_heads=SMALL.clip.heads,
    )


@pytest.mark.usefixtures("inference")
class TestEmbed:
    @pytest.mark.parametrize(
        ("size", "mode", "grid"),
        [
            ((120, 90), WITH_TILES, (1, 1)),
            (TALL, WITH_TILES, (1, 2)),
            (WIDE, WITH_TILES, (3, 1)),
            ((400, 600), WITH_TILES, (2, 3)),
            ((500, 490), ResolutionMode(320, 144), (2, 2)),
            ((400, 600), WITHOUT_TILES, (1, 1)),
        ],
    )
    def test_a_picture(
        self,
        encoder: DeepEncoder,
        oracle: EncoderOracle,
        size: tuple[int, int],
        mode: ResolutionMode,
        grid: tuple[int, int],
    ) -> None:
        picture = views_of(size, mode)
        assert picture.grid == grid
        (ours,) = encoder.embed([picture])
        close(ours, oracle.embed(picture.global_view, picture.tiles, *grid))

    def test_pictures_encoded_together_are_as_each_encoded_alone(self, encoder: DeepEncoder) -> None:
        pictures = [
            views_of((100, 90), WITH_TILES, seed=1),
            views_of((400, 600), WITH_TILES, seed=2),
            views_of((600, 400), ResolutionMode(160, 256), seed=3),  # its tiles are the others' global size
            views_of(WIDE, WITH_TILES, seed=4),
            views_of((400, 600), WITHOUT_TILES, seed=5),
            views_of((300, 100), ResolutionMode(160, 160), seed=6),  # both views of one size
        ]
        together = encoder.embed(pictures)
        assert len(together) == len(pictures)
        for ours, picture in zip(together, pictures, strict=True):
            (alone,) = encoder.embed([picture])
            close(ours, alone)
        assert encoder.embed([]) == []

    def test_more_views_than_one_pass_takes(self) -> None:
        encoder = random_encoder(FAST)
        mode = ResolutionMode(512, 512, max_crops=9)
        pictures = [views_of((900, 900), mode, seed=seed) for seed in range(4)]
        views = sum(1 + picture.grid.tiles for picture in pictures)
        assert views * 512 * 512 > PIXELS_PER_PASS
        for ours, picture in zip(encoder.embed(pictures), pictures, strict=True):
            (alone,) = encoder.embed([picture])
            close(ours, alone)

    def test_a_view_larger_than_a_pass_is_encoded(self) -> None:
        encoder = random_encoder(FAST)
        picture = views_of((900, 900), ResolutionMode(128, 128), seed=7)
        (expected,) = encoder.embed([picture])
        encoder.pixels_per_pass = 1
        (ours,) = encoder.embed([picture])
        close(ours, expected)

    def test_forward_is_one_view_row_by_row(self, encoder: DeepEncoder, oracle: EncoderOracle) -> None:
        picture = views_of((256, 256), WITHOUT_TILES)
        ours = encoder(normalize(picture.global_view[None], torch.float32))
        assert tuple(ours.shape) == (1, 16, SMALL.hidden_size)
        close(ours[0], oracle.features(picture.global_view).flatten(0, 1))

    def test_embeddings_have_the_weights_type(self) -> None:
        encoder = random_encoder(FAST).bfloat16()
        (ours,) = encoder.embed([views_of((100, 100), ResolutionMode(128, 128))])
        assert ours.dtype == torch.bfloat16
        (expected,) = random_encoder(FAST).embed([views_of((100, 100), ResolutionMode(128, 128))])
        close(ours.float(), expected, tolerance=0.05)


class TestPositionTables:
    """They are interpolated once for each size, which must not affect results."""

    @pytest.fixture
    def encoder(self) -> DeepEncoder:
        return random_encoder(SMALL)

    @staticmethod
    def run(encoder: DeepEncoder, size: int) -> torch.Tensor:
        pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2 - 1
        out: torch.Tensor = encoder(pixels)
        return out

    @pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
    def test_sizes_in_any_order(self, encoder: DeepEncoder, guard: type[torch.no_grad]) -> None:
        order = [320, 160, 256, 160, 320, 256]
        with guard():
            results = [self.run(encoder, size) for size in order]
            for size, result in zip(order, results, strict=True):
                assert torch.equal(result, self.run(random_encoder(SMALL), size))

    def test_used_for_inference_first_it_can_still_be_trained(self, encoder: DeepEncoder) -> None:
        with torch.inference_mode():
            self.run(encoder, 160)
        self.run(encoder, 160).square().mean().backward()
        for name, parameter in encoder.named_parameters():
            if name in ("image_newline", "view_seperator"):  # not used for a single view
                continue
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

    def test_an_evaluation_between_training_steps_sees_the_new_weights(self, encoder: DeepEncoder) -> None:
        optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
        with torch.no_grad():
            before = self.run(encoder, 160)
        self.run(encoder, 160).square().mean().backward()
        optimiser.step()
        with torch.no_grad():
            after = self.run(encoder, 160)
        fresh = DeepEncoder(SMALL).eval()
        fresh.load_state_dict(encoder.state_dict())
        with torch.no_grad():
            assert torch.equal(after, self.run(fresh, 160))
        assert not torch.equal(after, before)

    def test_another_number_type(self, encoder: DeepEncoder) -> None:
        with torch.no_grad():
            single = self.run(encoder, 160)
            encoder.double()
            pixels = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(160)) * 2 - 1
            double = encoder(pixels.double())
        assert double.dtype == torch.float64
        close(single.double(), double)


class TestConfig:
    def test_the_published_sizes(self, published_config: dict) -> None:
        config = EncoderConfig.from_checkpoint(published_config["vision_config"], published_config["projector_config"])
        assert config == EncoderConfig(
            sam=SamConfig(768, 12, 12, (2, 5, 8, 11), 14, 256, (512, 1024), 64),
            clip=ClipConfig(1024, 24, 16, 16, 14),
            hidden_size=1280,
        )
        assert config == EncoderConfig(SamConfig(), ClipConfig())

    def test_sizes_that_do_not_fit_together(self, published_config: dict) -> None:
        vision, projector = published_config["vision_config"], published_config["projector_config"]
        with pytest.raises(ValueError, match=r"projector_config\.input_dim is 2047"):
            EncoderConfig.from_checkpoint(vision, {**projector, "input_dim": 2047})
        with pytest.raises(ValueError, match="vision_config"):
            EncoderConfig.from_checkpoint({"image_size": 1024}, projector)
        with pytest.raises(ValueError, match="downsample"):
            EncoderConfig(SamConfig(downsample=(8, 16)), ClipConfig(width=32))

    def test_names_and_shapes_are_the_published_ones(self, published_config: dict) -> None:
        from ocr_builders import checkpoint_shapes

        config = EncoderConfig.from_checkpoint(published_config["vision_config"], published_config["projector_config"])
        with torch.device("meta"):
            encoder: nn.Module = DeepEncoder(config)
        ours = {f"model.{name}": tuple(value.shape) for name, value in encoder.state_dict().items()}
        published = checkpoint_shapes(published_config)
        unread = "model.vision_model.embeddings.patch_embedding.weight"
        decoder = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
        assert ours == {n: s for n, s in published.items() if not n.startswith(decoder) and n != unread}
