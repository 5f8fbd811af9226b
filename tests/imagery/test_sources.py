"""Images are found where rows may look, and nowhere else: paths, bytes, sizes, and a real local server."""

import http.server
import io
import os
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from rs_rlhf.errors import ImageError
from rs_rlhf.imagery.identity import pixel_hash
from rs_rlhf.imagery.raster import image_size, read_image
from rs_rlhf.imagery.sources import ImageOptions, resolve_path


@pytest.fixture
def rgb():
    """An 8 x 6 (height x width) picture."""
    return np.asarray(picture(0, width=6, height=8))


def test_options_pickle_and_take_yaml_lists():
    options = ImageOptions(bands=[4, 3, 2], stretch="percentile", stretch_range=[1, 99], allowed_hosts=["A.org"])
    assert options.bands == (4, 3, 2) and options.stretch_range == (1, 99) and options.allowed_hosts == ("a.org",)
    assert pickle.loads(pickle.dumps(options)) == options
    hash(options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"stretch": "log"}, "one of percentile, fixed, got 'log'"),
        ({"stretch": "fixed"}, r"needs `stretch_range"),
        ({"stretch_range": (0, 1)}, "`stretch_range` needs `stretch`"),
        ({"stretch": "fixed", "stretch_range": (5, 5)}, r"two numbers \[low, high\]"),
        ({"stretch": "fixed", "stretch_range": (0, float("nan"))}, r"two numbers \[low, high\]"),
        ({"stretch": "percentile", "stretch_range": (2, 200)}, r"0\.\.100"),
        ({"bands": (0, 1, 2)}, "counted from 1"),
        ({"bands": (1, 2)}, "one or three band numbers"),
        ({"bands": 3}, "`bands` must be a list"),
        ({"allowed_hosts": "example.org"}, "`allowed_hosts` must be a list"),
        ({"allowed_hosts": ["https://example.org/"]}, "bare host names"),
        ({"max_image_pixels": 0}, "max_image_pixels"),
        ({"nodata": "none"}, "`nodata` must be a number"),
    ],
)
def test_options_refuse(bad, message):
    with pytest.raises(ImageError, match=message):
        ImageOptions(**bad)


def test_image_root_holds_every_path_inside(tmp_path, rgb):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    Image.fromarray(rgb).save(root / "a.png")
    Image.fromarray(rgb).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "fine.png").symlink_to(root / "a.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    options = ImageOptions(image_root=str(root))
    for good in ("a.png", "sub/../a.png", str(root / "a.png"), "fine.png", Path("a.png")):
        assert np.array_equal(np.asarray(read_image(good, options)), rgb)
    for bad in ("../secret.png", "sub/../../secret.png", str(tmp_path / "secret.png"), "link.png"):
        with pytest.raises(ImageError, match=r"rows\.jsonl row 3: image .*leaves image_root '.*root'"):
            resolve_path(bad, options, "rows.jsonl row 3")
        with pytest.raises(ImageError, match="leaves image_root"):
            read_image({"bytes": None, "path": bad}, options)
    with pytest.raises(ImageError, match="loop.png"):
        resolve_path("loop.png", options)
    with pytest.raises(ImageError, match=r"row 7: image 'b\.png': no such file under image_root '.*root'"):
        read_image("b.png", options, "row 7")
    with pytest.raises(ImageError, match="is a directory"):
        read_image("sub", options)
    with pytest.raises(ImageError, match="cannot be followed"):
        read_image("a\0.png", options)


def test_without_root_a_path_is_used_as_it_is(tmp_path, rgb, monkeypatch):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert resolve_path("a.png") == Path("a.png")
    with pytest.raises(ImageError, match="'b.png': no such file"):
        read_image("b.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):  # opening it would hang for ever
        read_image("pipe.png")


def test_hf_dict_and_bytes(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for source in (content, {"bytes": content, "path": "gone.png"}, {"bytes": None, "path": str(tmp_path / "a.png")}):
        assert np.array_equal(np.asarray(read_image(source)), rgb)
        assert image_size(source) == (8, 6)
    with pytest.raises(ImageError, match="row 1: image 'gone.png': cannot be decoded"):
        read_image({"bytes": content[:60], "path": "gone.png"}, where="row 1")
    with pytest.raises(ImageError, match="neither `bytes` nor `path`"):
        read_image({"bytes": None, "path": None})
    with pytest.raises(ImageError, match="expected a path, URL, PIL image"):
        read_image(17)


def test_empty_and_unknown(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"<html>not found</html>")
    for source in (tmp_path / "a.png", b""):
        with pytest.raises(ImageError, match=r"is empty \(0 bytes\)"):
            read_image(source)
    for function in (read_image, image_size, pixel_hash):
        with pytest.raises(ImageError, match="b.png': is not an image in a known format; expected one of PNG, JPEG"):
            function(tmp_path / "b.png")


@pytest.mark.parametrize("kind", ["png", "tif", "jpg"])
def test_size_limit_is_read_from_the_header(tmp_path, rgb, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(rgb).save(path)
    options = ImageOptions(max_image_pixels=47)
    for source in (path, path.read_bytes(), Image.open(path), rgb):
        for function in (read_image, image_size):
            with pytest.raises(ImageError, match="is 6x8 pixels, more than max_image_pixels=47"):
                function(source, options)
        assert read_image(source, ImageOptions(max_image_pixels=48)).size == (6, 8)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("geo", [True, False])
def test_truncated_and_corrupt(tmp_path, kind, geo, monkeypatch):
    if geo:
        pytest.importorskip("rasterio")
    else:
        monkeypatch.setitem(sys.modules, "rasterio", None)
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(picture).save(path, **({"compression": "tiff_lzw"} if kind == "tif" else {}))
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:20], whole[:12] + bytes(30)):
        path.write_bytes(part)
        for source in (path, part):
            with pytest.raises(ImageError, match="row 5: image .*(cannot be decoded|known format|cannot open)"):
                read_image(source, where="row 5")


def test_bomb_is_refused_before_decoding_and_pillows_limit_does_not_decide(tmp_path, monkeypatch, rgb):
    content = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(content, "PNG")  # 400 Mpx in 50 kB; Pillow refuses above 179 Mpx
    with pytest.raises(ImageError, match="20000x20000 pixels, more than max_image_pixels=100000000"):
        read_image(content.getvalue())
    assert image_size(content.getvalue(), ImageOptions(max_image_pixels=10**9)) == (20_000, 20_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("png", "tif", "jpg", "bmp"):
        Image.fromarray(rgb).save(tmp_path / f"a.{kind}")
        assert read_image(tmp_path / f"a.{kind}").size == (6, 8)
    Image.fromarray(rgb).save(tmp_path / "a.webp")  # the one plugin that asks for itself, from Pillow 13 on: say so
    try:
        assert read_image(tmp_path / "a.webp").size == (6, 8)
    except ImageError as error:
        assert "larger than Pillow reads of this format" in str(error)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.fixture
def server(rgb, monkeypatch):
    """A web server on this machine; gives its port."""
    monkeypatch.setenv("no_proxy", "*")
    content = io.BytesIO()
    Image.fromarray(rgb).save(content, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            moves = {"/away": f"http://localhost:{port}/a.png", "/file": "file:///etc/hostname", "/here": "/a.png"}
            if self.path in moves:
                self.send_response(302)
                self.send_header("Location", moves[self.path])
                self.end_headers()
                return
            self.send_response(200 if self.path in ("/a.png", "/short", "/large") else 404)
            self.end_headers()
            body = {"/short": content.getvalue()[:70], "/large": bytes(3000)}.get(self.path, content.getvalue())
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        port = running.server_address[1]
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield port
        running.shutdown()


def test_urls_need_an_allowed_host(server, rgb, monkeypatch):
    url = f"http://127.0.0.1:{server}"
    with pytest.raises(ImageError, match=r"row 4: image .*host '127\.0\.0\.1' is not in allowed_hosts \(none\)"):
        read_image(f"{url}/a.png", where="row 4")
    options = ImageOptions(allowed_hosts=("127.0.0.1",))
    for path in ("/a.png", "/here"):
        assert np.array_equal(np.asarray(read_image(url + path, options)), rgb)
    assert image_size({"path": f"{url}/a.png", "bytes": None}, options) == (8, 6)
    with pytest.raises(ImageError, match=r"redirected to .*host 'localhost' is not in allowed_hosts \(127"):
        read_image(f"{url}/away", options)
    with pytest.raises(ImageError, match="file: URLs are never read|download failed"):
        read_image(f"{url}/file", options)
    with pytest.raises(ImageError, match="download failed.*404"):
        read_image(f"{url}/gone.png", options)
    with pytest.raises(ImageError, match="truncated or corrupt"):
        read_image(f"{url}/short", options)
    with pytest.raises(ImageError, match="host 'localhost' is not"):
        read_image(f"http://127.0.0.1@localhost:{server}/a.png", options)
    monkeypatch.setattr("rs_rlhf.imagery.sources.DOWNLOAD_BYTES", 1000)
    with pytest.raises(ImageError, match="is larger than 1000 bytes"):
        read_image(f"{url}/large", options)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "data:image/png;base64,iVBO", "ftp://127.0.0.1/a.png", "FILE:x"]
)
def test_other_schemes_are_never_read(url):
    with pytest.raises(ImageError, match="URLs are never read"):
        read_image(url, ImageOptions(allowed_hosts=("127.0.0.1",)))
