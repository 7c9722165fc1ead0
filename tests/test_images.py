"""Images as they come: what can be read is read right, what cannot is named, and nothing else is lost."""
import io
import numpy as np, pytest
from PIL import Image
from test_cli import fails, vap

@pytest.fixture
def folder(tmp_path):
    "Two classes of ten ordinary images."
    rng = np.random.default_rng(0)
    for label in ('a', 'b'):
        (tmp_path/'images'/label).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (80, 70, 3), dtype=np.uint8)).save(tmp_path/'images'/label/f'{i}.png')
    return tmp_path/'images'

def odd(folder):
    "The same red square in modes that cameras and scanners write."
    red = Image.new('RGB', (40, 40), (200, 30, 30))
    red.convert('CMYK').save(folder/'a'/'cmyk.jpg')
    red.convert('RGBA').save(folder/'a'/'rgba.png')
    red.convert('P').save(folder/'a'/'palette.png')
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(folder/'a'/'sixteen.png')
    red.resize((1, 1)).save(folder/'a'/'one.png')
    exif = Image.Exif(); exif[0x0112] = 6
    tall = Image.new('RGB', (40, 80))
    tall.paste((255, 255, 255), (0, 0, 40, 40))
    tall.save(folder/'a'/'rotated.jpg', exif=exif)

def broken(folder):
    (folder/'b'/'empty.png').write_bytes(b''); (folder/'b'/'words.png').write_text('this is no image')
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 50).convert('RGB').save(buffer, 'JPEG')
    (folder/'b'/'torn.jpg').write_bytes(buffer.getvalue()[:len(buffer.getvalue())//2])

def test_odd_images_are_read(folder, tmp_path):
    from vap_diffusion.datasets import load_image
    odd(folder)
    for name in ('cmyk.jpg', 'rgba.png', 'palette.png'):
        image = load_image(folder/'a'/name, 16)
        assert image.shape == (16, 16, 3) and image.dtype == np.uint8 and np.abs(image.mean((0, 1)) - (200, 30, 30)).max() < 30, name
    assert abs(load_image(folder/'a'/'sixteen.png', 16).mean() - 156) < 3, '16 bits are scaled, not clipped'
    assert load_image(folder/'a'/'rotated.jpg').shape[0] == 40
    out = vap('prepare', '--root', folder, '--out', tmp_path/'w')
    assert 'one.png' in out.stderr and '1 x 1' in out.stderr, 'a 1 x 1 image shows nothing: named and left out'
    vap('describe', tmp_path/'w'); vap('encode', tmp_path/'w')

def test_broken_images_are_named_and_left_out(folder, tmp_path):
    broken(folder)
    said = vap('prepare', '--root', folder, '--out', tmp_path/'w').stderr
    assert '3 of 23 images are left out' in said and 'empty.png' in said, said
    import pandas as pd
    assert sorted(pd.read_csv(tmp_path/'w'/'excluded.csv').file_name) == ['b/empty.png', 'b/torn.jpg', 'b/words.png']
    assert len(pd.read_parquet(tmp_path/'w'/'table.parquet')) == 20

def test_only_broken_images(tmp_path):
    for label in 'ab': (tmp_path/'i'/label).mkdir(parents=True); (tmp_path/'i'/label/'x.png').write_bytes(b'')
    assert 'x.png' in fails('prepare', '--root', tmp_path/'i', '--out', tmp_path/'w')
