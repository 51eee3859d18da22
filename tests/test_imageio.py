"""Image files: what goes in comes out, what can't be kept is refused, and nothing is half-written."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image as PILImage

from hatlib.atomic import atomic_path, remove_stale
from hatlib.errors import HatlibError
from hatlib.imageio import IMAGE_SUFFIXES, Header, Image, check_output, png, read_image, write_image


def picture(channels, dtype, height=13, width=17, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_and_tiff_keep_everything(tmp_path, suffix, dtype, channels):
    pixels = picture(channels, dtype)
    write_image(tmp_path / f"a{suffix}", Image(pixels))
    back = read_image(tmp_path / f"a{suffix}")
    assert back.pixels.dtype == dtype and np.array_equal(back.pixels, pixels)
    assert back.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    assert os.listdir(tmp_path) == [f"a{suffix}"]


@pytest.mark.parametrize("suffix, channels", [(".bmp", 1), (".bmp", 3), (".pgm", 1), (".ppm", 3)])
def test_bmp_and_pnm_keep_8_bits(tmp_path, suffix, channels):
    pixels = picture(channels, np.uint8)
    write_image(tmp_path / f"a{suffix}", Image(pixels))
    assert np.array_equal(read_image(tmp_path / f"a{suffix}").pixels, pixels)


@pytest.mark.parametrize("suffix, channels", [(".jpg", 1), (".jpeg", 3), (".webp", 3), (".webp", 4)])
def test_lossy_formats_stay_near(tmp_path, suffix, channels):
    pixels = np.kron(picture(channels, np.uint8, 2, 3) // 2 + 64, np.ones((16, 16, 1), np.uint8))
    write_image(tmp_path / f"a{suffix}", Image(pixels), quality=100)
    back = read_image(tmp_path / f"a{suffix}").pixels
    assert back.shape == pixels.shape
    assert np.abs(back.astype(int) - pixels).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".png"])
def test_orientation_is_applied_once(tmp_path, orientation, suffix):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = (250, 20, 20)
    upright[:8, 12:] = (20, 250, 20)
    upright[8:, :12] = (20, 20, 250)
    turns = [None, 0, 2, 3, 4, 5, 6, 7, 8]
    turn = turns[orientation]
    stored = PILImage.fromarray(upright)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Transpose members that undo what a viewer will do
    if turn:
        stored = stored.transpose(PILImage.Transpose(inverse[turn]))
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    stored.save(tmp_path / f"a{suffix}", exif=exif, **({"quality": 100} if suffix in (".jpg", ".webp") else {}))

    image = read_image(tmp_path / f"a{suffix}")
    assert image.pixels.shape == upright.shape
    for y, x in [(3, 5), (3, 18), (12, 5), (12, 18)]:
        assert np.abs(image.pixels[y, x].astype(int) - upright[y, x]).max() < 40
    write_image(tmp_path / "b.jpg", image)
    assert read_image(tmp_path / "b.jpg").pixels.shape == upright.shape
    with PILImage.open(tmp_path / "b.jpg") as again:
        assert again.getexif().get(0x0112, 1) == 1


def test_metadata_survives(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = PILImage.Exif()
    exif[0x010F] = "Maker"
    PILImage.fromarray(picture(3, np.uint8)).save(
        tmp_path / "a.jpg", icc_profile=profile, exif=exif, dpi=(300, 300), xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    )
    write_image(tmp_path / "b.png", read_image(tmp_path / "a.jpg"))
    with PILImage.open(tmp_path / "b.png") as back:
        assert back.info["icc_profile"] == profile
        assert back.getexif()[0x010F] == "Maker"
        assert "xmpmeta" in str(back.info.get("xmp", back.info.get("XML:com.adobe.xmp")))
        assert back.info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("mode, expected", [("1", "L"), ("P", "RGB"), ("L", "L"), ("LA", "LA"), ("RGBA", "RGBA")])
def test_kinds_of_png(tmp_path, mode, expected):
    PILImage.fromarray(picture(3, np.uint8)).convert(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.mode == expected and image.bits == 8
    if mode == "1":
        assert set(np.unique(image.pixels)) == {0, 255}


def test_transparent_palette_color_becomes_alpha(tmp_path):
    palette = PILImage.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), "P")
    palette.putpalette([value for i in range(16) for value in (i, 2 * i, 3 * i)])
    palette.save(tmp_path / "a.png", transparency=5)
    image = read_image(tmp_path / "a.png")
    assert image.mode == "RGBA"
    assert image.pixels[1, 1, 3] == 0 and (np.delete(image.pixels[..., 3].ravel(), 5) == 255).all()


def test_16_bit_gray_pnm_is_whole(tmp_path):
    pixels = picture(1, np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 # a comment\n17 13\n65535\n" + pixels.astype(">u2").tobytes())
    assert np.array_equal(read_image(tmp_path / "a.pgm").pixels, pixels)


def apng() -> bytes:
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    frame = zlib.compress(b"\0\0")
    control = struct.pack(">IIIIHHBB", 1, 1, 0, 0, 1, 1, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", header, chunk(b"acTL", struct.pack(">II", 2, 0))]
        + [chunk(b"fcTL", struct.pack(">I", 0) + control), chunk(b"IDAT", frame)]
        + [chunk(b"fcTL", struct.pack(">I", 1) + control), chunk(b"fdAT", struct.pack(">I", 2) + frame)]
        + [chunk(b"IEND", b"")]
    )


def tiff(pixels, extra_samples):
    """An uncompressed TIFF with alpha, plain (2) or premultiplied (1), byte by byte."""
    height, width, channels = pixels.shape
    short, long = "H", "I"
    tags = [
        (256, short, [width]),
        (257, short, [height]),
        (258, short, [8 * pixels.itemsize] * channels),
        (259, short, [1]),
        (262, short, [2 if channels > 2 else 1]),
        (273, long, [512]),
        (277, short, [channels]),
        (278, short, [height]),
        (279, long, [pixels.nbytes]),
        (338, short, [extra_samples]),
    ]
    table, beyond = struct.pack("<H", len(tags)), b""
    for number, kind, values in tags:
        data = struct.pack(f"<{len(values)}{kind}", *values)
        if len(data) > 4:
            beyond, data = beyond + data, struct.pack("<I", 256 + len(beyond))
        table += struct.pack("<HHI", number, 3 if kind == short else 4, len(values)) + data.ljust(4, b"\0")
    head = (b"II*\0" + struct.pack("<I", 8) + table + bytes(4)).ljust(256, b"\0") + beyond
    return head.ljust(512, b"\0") + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_premultiplied_tiff_becomes_plain(tmp_path, channels, dtype):
    top = np.iinfo(dtype).max
    pixels = np.full((4, 5, channels), top // 5, dtype)
    pixels[..., -1] = top // 2
    pixels[0] = 0
    for extra, factor in [(2, 1), (1, 2)]:
        (tmp_path / f"{extra}.tif").write_bytes(tiff(pixels, extra))
        image = read_image(tmp_path / f"{extra}.tif")
        assert image.has_alpha and np.array_equal(image.pixels[..., -1], pixels[..., -1])
        assert np.abs(image.pixels[1:, :, :-1].astype(int) - factor * (top // 5)).max() <= 1
        assert not image.pixels[0].any()


def with_gamma(pixels, gamma, path):
    write_image(path, Image(pixels, {"png-color": png.chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))}))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 3])
def test_gamma_of_png(tmp_path, channels, dtype):
    """Kept from PNG to PNG; for another format the samples are brought to the usual gamma, alpha excepted."""
    pixels, top = picture(channels, dtype, 40, 50), np.iinfo(dtype).max
    with_gamma(pixels, 1.0, tmp_path / "a.png")
    with PILImage.open(tmp_path / "a.png") as pil:
        assert pil.info["gamma"] == pytest.approx(1.0)
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(image.pixels, pixels)
    write_image(tmp_path / "b.tif", image)
    converted = read_image(tmp_path / "b.tif").pixels
    expected = pixels / top
    colors = slice(0, 3 if channels == 3 else 1)
    expected[..., colors] **= 1 / 2.2
    assert np.abs(converted - expected * top).max() <= 0.5 + 1e-6
    with_gamma(pixels, 1 / 2.2, tmp_path / "usual.png")
    write_image(tmp_path / "usual.tif", read_image(tmp_path / "usual.png"))
    assert np.array_equal(read_image(tmp_path / "usual.tif").pixels, pixels)


def test_chunks_are_inserted_in_any_file_size(tmp_path, monkeypatch):
    pixels = picture(3, np.uint8, 200, 200)
    write_image(tmp_path / "a.png", Image(pixels))
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(png, "_BLOCK", 1000)
    png.insert_after_header(tmp_path / "a.png", png.chunk(b"gAMA", bytes(4)))
    after = (tmp_path / "a.png").read_bytes()
    assert after == before[:33] + png.chunk(b"gAMA", bytes(4)) + before[33:]


def gray_profile():
    """A gray ICC profile with gamma 1, of the tags that are required."""
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"gray\0" + bytes(78)
    tags = {
        b"desc": text.ljust(96, b"\0"),
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D),
        b"kTRC": b"curv" + bytes(4) + struct.pack(">I", 0),
    }
    offset = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value
    head = bytearray(128)
    head[0:4] = struct.pack(">I", offset + len(data))
    head[8:12] = struct.pack(">I", 0x02400000)
    head[12:24] = b"mntrGRAYXYZ "
    head[36:40] = b"acsp"
    head[68:80] = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return bytes(head) + table + data


@pytest.mark.parametrize("channels", [1, 2])
def test_gray_profile_in_webp_becomes_color(tmp_path, channels):
    """WebP has no gray: pixels and profile become sRGB, and look as they did."""
    pixels = np.full((16, 16, channels), 255, np.uint8)
    pixels[..., 0] = 100
    image = Image(pixels, {"icc-profile-data": gray_profile()})
    write_image(tmp_path / "a.webp", image, quality=100)
    write_image(tmp_path / "a.png", image)
    assert read_image(tmp_path / "a.png").metadata["icc-profile-data"] == gray_profile()
    back = read_image(tmp_path / "a.webp")
    assert back.metadata["icc-profile-data"][16:20] == b"RGB "
    linear = 100 / 255  # with gamma 1 the sample is the light itself
    expected = (1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(back.pixels[..., :3].astype(float) - expected).max() < 4


def test_too_large_for_the_format():
    for name, reason in [("a.webp", "16383"), ("a.jpg", "65535")]:
        with pytest.raises(HatlibError, match=reason):
            check_output(name, Header(10, 70_000, 3, np.dtype(np.uint8)))


def test_stale_files_are_removed(tmp_path):
    stale = tmp_path / ".hatlib-1.part"
    stale.write_bytes(b"half")
    (tmp_path / ".other.part").write_bytes(b"mine")
    with atomic_path(tmp_path / "a.png") as living:
        remove_stale(tmp_path)
        assert living.exists() and not stale.exists()
        living.write_bytes(b"whole")
    assert sorted(os.listdir(tmp_path)) == [".other.part", "a.png"]


def test_no_noise_on_stderr(tmp_path):
    """What libvips logs of a damaged file is in the error, and nowhere else."""
    truncated(tmp_path)
    code = "import sys; from hatlib.imageio import read_image\ntry: read_image(sys.argv[1])\nexcept ValueError: pass"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def save(name, image, **options):
    return lambda folder: image.save(folder / name, **options)


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def truncated(folder):
    write_image(folder / "whole.png", Image(picture(3, np.uint8, 64, 64)))
    (folder / "a.png").write_bytes((folder / "whole.png").read_bytes()[:3000])


RGB = PILImage.fromarray(picture(3, np.uint8))
REFUSED = {
    "missing": ("a.png", lambda folder: None, "No such file"),
    "folder": ("a.png", lambda folder: (folder / "a.png").mkdir(), "directory"),
    "zero bytes": ("a.png", write("a.png", b""), "empty"),
    "text named png": ("a.png", write("a.png", b"I am a text\n"), "not an image"),
    "signature only": ("a.png", write("a.png", b"\x89PNG\r\n\x1a\n"), "truncated or corrupt"),
    "truncated": ("a.png", truncated, "truncated or corrupt"),
    "animated png": ("a.png", write("a.png", apng()), "several frames"),
    "animated webp": (
        "a.webp",
        save("a.webp", RGB, save_all=True, append_images=[RGB.rotate(180)]),
        "2 pages or frames",
    ),
    "two pages": ("a.tif", save("a.tif", RGB, save_all=True, append_images=[RGB]), "2 pages or frames"),
    "cmyk": ("a.jpg", save("a.jpg", RGB.convert("CMYK")), "cmyk"),
    "float": ("a.tif", save("a.tif", RGB.convert("F")), "float"),
    "gif": ("a.gif", save("a.gif", RGB), "not an image"),
    "truncated bmp": ("a.bmp", write("a.bmp", b"BM" + bytes(60)), "truncated or corrupt"),
    "truncated ppm": ("a.ppm", write("a.ppm", b"P6 4 4 255\n" + bytes(10)), "truncated or corrupt"),
    "16-bit ppm": ("a.ppm", write("a.ppm", b"P6\n2 2\n# deep\n65535\n" + bytes(24)), "16-bit"),
    "huge header": ("a.pgm", write("a.pgm", b"P5 99999 99999 255\n"), "too large"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_sentence(tmp_path, case):
    name, make, reason = REFUSED[case]
    make(tmp_path)
    with pytest.raises(HatlibError, match=reason) as caught:
        read_image(tmp_path / name)
    message = str(caught.value)
    assert name in message and "\n" not in message and message.endswith(".")


def test_name_is_not_parsed_as_options(tmp_path):
    path = tmp_path / "ä b[Q=1] %.png"
    write_image(path, Image(picture(3, np.uint8)))
    assert np.array_equal(read_image(path).pixels, picture(3, np.uint8))
    long = tmp_path / ("n" * 240 + ".png")
    write_image(long, read_image(path))
    assert long.is_file()


def test_content_decides_and_not_the_name(tmp_path):
    write_image(tmp_path / "a.jpg", Image(picture(3, np.uint8)))
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").mode == "RGB"


@pytest.mark.parametrize(
    "name, channels, dtype, reason",
    [
        ("a.jpg", 4, np.uint8, "transparency"),
        ("a.bmp", 2, np.uint8, "transparency"),
        ("a.jpg", 3, np.uint16, "16"),
        ("a.webp", 3, np.uint16, "16"),
        ("a.pgm", 3, np.uint8, "RGB"),
        ("a.pbm", 1, np.uint8, "does not hold"),
        ("a.xyz", 3, np.uint8, "must end in"),
        ("nowhere/a.png", 3, np.uint8, "no folder"),
        ("file/a.png", 3, np.uint8, "no folder"),
        ("folder.png", 3, np.uint8, "it is a folder"),
    ],
)
def test_what_can_not_be_written(tmp_path, name, channels, dtype, reason):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    before = sorted(os.listdir(tmp_path))
    for function in (write_image, check_output):
        with pytest.raises(HatlibError, match=reason):
            image = Image(picture(channels, dtype))
            function(tmp_path / name, image if function is write_image else image.header)
    assert sorted(os.listdir(tmp_path)) == before


FULL_DISK = """
import resource, sys
import numpy as np
from hatlib.errors import HatlibError
from hatlib.imageio import Image, write_image

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for path in sys.argv[1:]:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 1 if path.endswith(".pgm") else 3), np.uint8)
    try:
        write_image(path, Image(noise))
    except HatlibError as error:
        print(error)
"""


def test_full_disk_leaves_the_old_file(tmp_path):
    """A limit on file sizes stops each write half-way, as a full disk does."""
    paths = [tmp_path / f"a{suffix}" for suffix in sorted(set(IMAGE_SUFFIXES) - {".pbm"})]
    for path in paths:
        path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *paths], capture_output=True, text=True, check=True)
    messages = done.stdout.splitlines()
    assert len(messages) == len(paths)
    for path, message in zip(paths, messages, strict=True):
        assert message == f"Cannot write '{path}': File too large."
        assert path.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_while_writing_leaves_nothing(tmp_path, error):
    with pytest.raises(error), atomic_path(tmp_path / "a.png") as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert os.listdir(tmp_path) == []


def test_symlink_is_written_through(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    write_image(tmp_path / "link.png", Image(picture(3, np.uint8)))
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "real.png").is_file()


@pytest.mark.parametrize("shape, dtype", [((4, 4), np.uint8), ((4, 4, 5), np.uint8), ((4, 4, 3), np.float32)])
def test_image_refuses_other_arrays(shape, dtype):
    with pytest.raises(HatlibError):
        Image(np.zeros(shape, dtype))
