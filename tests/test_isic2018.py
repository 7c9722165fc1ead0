"""A short version of the main job on real ISIC 2018 images, where they are at hand (beside the repository, in the publisher's layout)."""
import json, shutil
from pathlib import Path
import pandas as pd, pytest
from chapters import ROOT
from test_cli import fails, vap

ISIC = ROOT.parent/'shared'/'data'/'isic2018'
pytestmark = pytest.mark.skipif(not ISIC.exists(), reason=f'no ISIC 2018 images in {ISIC.name}/ beside the repository: the real-image test is skipped')

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "The publisher's layout with 20 images of each class and split."
    root = tmp_path_factory.mktemp('isic')
    for part in ('Training', 'Test'):
        truth = next((ISIC/f'ISIC2018_Task3_{part}_GroundTruth').glob('*.csv'))
        rows = pd.read_csv(truth); images = ISIC/f'ISIC2018_Task3_{part}_Input'
        rows = rows[[(images/f'{i}.jpg').exists() for i in rows.image]]
        classes = [c for c in rows.columns if c != 'image']
        keep = rows.groupby(rows[classes].idxmax(axis=1)).head(20)
        for folder in (f'ISIC2018_Task3_{part}_GroundTruth', f'ISIC2018_Task3_{part}_Input'): (root/folder).mkdir()
        keep.to_csv(root/truth.parent.name/truth.name, index=False)
        for i in keep.image: shutil.copy(images/f'{i}.jpg', root/images.name)
    shutil.copy(ISIC/'HAM10000_metadata.csv', root)
    return root

def test_the_whole_way_on_real_images(small, tmp_path):
    w = tmp_path/'w'
    vap('prepare', '--dataset', 'isic2018', '--root', small, '--out', w)
    table = pd.read_parquet(w/'table.parquet')
    assert set(table.split) == {'train', 'val', 'test'} and len(set(table.label)) == 7
    assert table.groupby('group').split.nunique().max() == 1, 'a lesion stands in two splits'
    vap('describe', w); vap('encode', w, '--adapt-minutes', 0.2); vap('train', w, '--steps', 6)
    vap('sample', w/'models'/'vap'/'pipeline', '--out', tmp_path/'s', '--like', w, '--n', 14, '--prompts', 'own', '--steps', 4)
    assert len(list((tmp_path/'s'/'images').glob('*.png'))) == 14
    words = [json.loads(l) for l in (w/'descriptions.jsonl').read_text().splitlines()]
    assert len({l['t_mix'] for l in words}) > len(words)//3, 'real images get varied descriptions'

def test_labels_and_images_that_do_not_match(small, tmp_path):
    root = tmp_path/'isic'; shutil.copytree(small, root)
    gone = sorted((root/'ISIC2018_Task3_Training_Input').glob('*.jpg'))[:3]
    for p in gone: p.unlink()
    out = vap('prepare', '--dataset', 'isic2018', '--root', root, '--out', tmp_path/'w', ok=False)
    text = out.stdout + out.stderr
    assert '3' in text and gone[0].stem in text and 'Traceback' not in text

def test_renamed_label_column(small, tmp_path):
    root = tmp_path/'isic'; shutil.copytree(small, root)
    path = next((root/'ISIC2018_Task3_Training_GroundTruth').glob('*.csv'))
    pd.read_csv(path).rename(columns={'MEL': 'Melanoma'}).to_csv(path, index=False)
    message = fails('prepare', '--dataset', 'isic2018', '--root', root, '--out', tmp_path/'w')
    assert 'MEL' in message and path.name in message
