"""Every data set: its layouts and faults on tiny stand-ins that the tests write, and the real images where they are at hand.

Real images are looked for in the folder VAP_DATA, else in shared/data beside the repository, in the publishers' layouts.
"""
import json, os, shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from typer.testing import CliRunner
from chapters import ROOT
from test_cli import fails, vap
from vap_diffusion.cli import app
from vap_diffusion.datasets import (CHEST_FINDINGS, CVC_STARTS, DATASETS, HYPERKVASIR_CLASSES, ISIC2018_CLASSES,
                                    ISIC2019_CLASSES, SPLITS, MatchError, assign_splits, check_dataset, csv_table,
                                    folder_table, load_image, load_mask, load_table, prepare, read_csv)
from vap_diffusion.phantoms import make_phantom

REAL = Path(os.environ.get('VAP_DATA', ROOT.parent/'shared'/'data'))

def draw(path, i=0, label='nevus', mode='RGB', size=24):
    "A small image of random structure; another for each i."
    path = Path(path); path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(np.random.default_rng(i).integers(0, 256, (4, 4, 3)).astype(np.uint8))
    coarse.resize((size, size), Image.Resampling.BICUBIC).convert(mode).save(path)
    return path

def cut(table): return int((table.groupby('group').split.nunique() > 1).sum())

def ready(name, root, out, **kw): return prepare(name, root, out, progress=False, **kw)

# --- ISIC 2018 and 2019 ----------------------------------------------------------------------------------------------

def one_hot(ids, classes, of):
    return pd.DataFrame([dict(image=i, **{c: float(c == of(k)) for c in classes}) for k, i in enumerate(ids)])

def isic2018(root, n=28, folder='ISIC2018_Task3_Training_Input'):
    ids, tests = [f'ISIC_{24306 + i:07d}' for i in range(n)], [f'ISIC_{34524 + i:07d}' for i in range(7)]
    for k, i in enumerate(ids): draw(root/folder/f'{i}.jpg', k)
    for k, i in enumerate(tests): draw(root/'ISIC2018_Task3_Test_Images'/'ISIC2018_Task3_Test_Images'/f'{i}.jpg', 100 + k)
    one_hot(ids, ISIC2018_CLASSES[::-1], lambda k: ISIC2018_CLASSES[k//2 % 7]).to_csv(
        root/'ISIC2018_Task3_Training_GroundTruth.csv', index=False)
    one_hot(tests, ISIC2018_CLASSES, lambda k: ISIC2018_CLASSES[k]).to_csv(
        root/'ISIC2018_Task3_Test_GroundTruth.csv', index=False)
    pd.DataFrame(dict(lesion_id=[f'HAM_{k//2:07d}' for k in range(n)], image_id=ids,
                      dx=[ISIC2018_CLASSES[k//2 % 7].lower() for k in range(n)])
                 ).to_csv(root/'HAM10000_metadata.csv', index=False)
    return root

def test_isic2018_in_the_form_of_the_dataverse(tmp_path):
    "Images in parts, labels in the column dx, a metadata file without ending, and a test file that has the official name but that form."
    challenge = DATASETS['isic2018'].table(isic2018(tmp_path/'a'))
    root = isic2018(tmp_path/'b', folder='HAM10000_images_part_1')
    (root/'ISIC2018_Task3_Training_GroundTruth.csv').unlink()
    (root/'HAM10000_metadata.csv').rename(root/'HAM10000_metadata')
    tests = challenge[challenge.split == 'test']
    pd.DataFrame(dict(lesion_id=[f'HAMTEST_{i:07d}' for i in range(7)], image_id=[Path(f).stem for f in tests.file_name],
                      dx=tests.label.str.lower())).to_csv(root/'ISIC2018_Task3_Test_GroundTruth.csv', index=False)
    dataverse = DATASETS['isic2018'].table(root)
    assert dataverse[['label', 'split', 'group']].equals(challenge[['label', 'split', 'group']])
    text = (root/'HAM10000_metadata').read_text()
    # spelt in full
    (root/'HAM10000_metadata').write_text(
        text.replace(',mel', ',Melanoma').replace(',bkl', ',Benign keratosis-like lesions'))
    assert DATASETS['isic2018'].table(root).equals(dataverse)
    (root/'HAM10000_metadata').write_text(text.replace(',mel', ',healthy'))
    with pytest.raises(ValueError, match='healthy'): DATASETS['isic2018'].table(root)

def test_isic2018_by_column_name_never_by_position(tmp_path):
    table = DATASETS['isic2018'].table(isic2018(tmp_path)) # its columns are reversed
    assert list(table.label[:4]) == ['MEL', 'MEL', 'NV', 'NV'] and (table.split == 'test').sum() == 7
    assert cut(ready('isic2018', tmp_path, tmp_path/'w')) == 0

def isic2019(root, n=40, suffix=True, in_labels=True, unk=()):
    names = [f'ISIC_{i:07d}' + '_downsampled'*(i % 5 == 0) for i in range(n)]
    for k, i in enumerate(names):
        draw(root/'ISIC_2019_Training_Input'/f'{i if suffix else i.removesuffix("_downsampled")}.jpg', k)
    ids = [i if in_labels else i.removesuffix('_downsampled') for i in names]
    labels = one_hot(ids, [*ISIC2019_CLASSES, 'UNK'], lambda k: 'UNK' if k in unk else ISIC2019_CLASSES[k//2 % 4])
    labels[labels.columns[1:]] = labels[labels.columns[1:]].astype(int) # a copy holds integers
    labels.to_csv(root/'ISIC_2019_Training_GroundTruth.csv', index=False, lineterminator='\r\n')
    pd.DataFrame(dict(image=names, age_approx=50, lesion_id=[None if k < 8 else f'BCN_{k//2}' for k in range(n)],
                      sex='female')).to_csv(root/'ISIC_2019_Training_Metadata.csv', index=False)
    return root

@pytest.mark.parametrize('suffix, in_labels', [(True, True), (True, False), (False, True)])
def test_isic2019_ids_with_and_without_downsampled(tmp_path, suffix, in_labels):
    table = DATASETS['isic2019'].table(isic2019(tmp_path, suffix=suffix, in_labels=in_labels))
    assert len(table) == 40 and list(table.label[:4]) == ['MEL', 'MEL', 'NV', 'NV'] and table.group.nunique() == 8 + 16

def test_isic2019_unknown_lesions_stay_in_training(tmp_path):
    for seed in range(5):
        table = ready('isic2019', isic2019(tmp_path/f'{seed}'), tmp_path/f'w{seed}', seed=seed)
        assert cut(table) == 0 and set(table.split) == set(SPLITS)
        assert set(table.split[:8]) == {'train'}
    # 8:2, as in the paper (a fifth of the 32 with a lesion, whole lesions in each class)
    assert table.attrs['test'] == 0.2 and (table.split == 'test').sum() == 8

def test_isic2019_of_an_unknown_class_and_without_lesions(tmp_path):
    root = isic2019(tmp_path, unk=(9, 10))
    with pytest.warns(UserWarning, match='2 of 40 images are of an unknown class'):
        assert 'UNK' not in set(DATASETS['isic2019'].table(root).label)
    (root/'ISIC_2019_Training_Metadata.csv').unlink()
    with pytest.warns(UserWarning, match='no lesion is known|UNK'): table = DATASETS['isic2019'].table(root)
    assert table.group.is_unique and table.split.isna().all()

# --- ChestX-ray14 ----------------------------------------------------------------------------------------------------

HEADER = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,'
          'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]')
LABELS = {(1, 0): 'Cardiomegaly', (1, 1): 'Cardiomegaly|Emphysema', (2, 0): 'Infiltrate'}

def nih(root, patients=20, header=HEADER, row='{name},{label},{film},{patient},50,F,PA,2682,2749,0.143,0.143',
        name='Data_Entry_2017_v2020.csv', place='images'):
    rows, films = [header], []
    for p in range(1, patients + 1):
        for film in range(2):
            films.append(f'{p:08d}_{film:03d}.png')
            draw(root/place.format(part=p % 3 + 1)/films[-1], 2*p + film, mode='RGBA' if (p, film) == (4, 0) else 'L')
            rows.append(row.format(
                name=films[-1], label=LABELS.get((p, film), ('No Finding', 'Effusion', 'Cardiomegaly', 'Infiltration')[p % 4]),
                film=film, patient=p))
    (root/name).write_text('\n'.join(rows))
    return films

@pytest.mark.parametrize('form', [
    dict(),
    dict(place='images_{part:03d}/images'),
    # the first release: a column too many, impossible ages
    dict(header=HEADER + ',', row='{name},{label},{film},{patient},414,F,PA,2682,2749,0.143,0.143,',
         name='Data_Entry_2017.csv'),
    dict(row='{name},{label},{film},{patient},50,F,PA,2682,2749,0.143,0.143,'),         # only the rows have it
    dict(header='Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,'
                'OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y',
         row='{name},{label},{film},{patient},050Y,F,PA,2682,2749,0.143,0.143', name='sample_labels.csv'),
    dict(header='Patient ID,Finding Labels,Image Index', row='{patient},{label},{name}'),    # another order of columns
])
def test_chestxray14_in_each_of_its_forms(tmp_path, form):
    films = nih(tmp_path, **form)
    table = DATASETS['chestxray14'].table(tmp_path)
    # the film with two findings is left out
    assert len(table) == len(films) - 1 and not table.label.str.contains('|', regex=False).any()
    by = dict(zip(table.file_name.map(lambda f: Path(f).name), table.label))
    assert by['00000001_000.png'] == 'Cardiomegaly' and by['00000002_000.png'] == 'Infiltration'   # Infiltrate is the same
    assert table.group.nunique() == 20 and table.split.isna().all() and set(table.label) <= set(CHEST_FINDINGS)
    done = ready('chestxray14', tmp_path, tmp_path/'w')
    assert cut(done) == 0 and done.attrs['test'] == 0.2 and (done.split == 'test').mean() == pytest.approx(0.2, abs=0.08)
    rgba = table.file_name[table.file_name.str.endswith('00000004_000.png')].iloc[0]
    assert load_image(tmp_path/rgba).shape == (24, 24, 3)

def test_chestxray14_lists(tmp_path):
    films = nih(tmp_path)
    # the lists are whole, the images need not be
    (tmp_path/'train_val_list.txt').write_text('\n'.join(films[:30]) + '\n')
    (tmp_path/'test_list.txt').write_text('\n'.join(films[30:] + ['09999999_000.png']))
    table = ready('chestxray14', tmp_path, tmp_path/'w')
    assert (set(table.file_name[table.split == 'test']) == {f'images/{f}' for f in films[30:]} and cut(table) == 0
            and 'val' in set(table.split))
    for name, part in (('train_list', films[:24]), ('val_list', films[24:30]), ('test_list', films[30:])):
        (tmp_path/f'{name}.txt').write_text('\n'.join(f'{f} ' + ' '.join('0'*14) for f in part)) # CheXNet's
    (tmp_path/'train_val_list.txt').unlink()
    assert dict(DATASETS['chestxray14'].table(tmp_path).split.value_counts()) == {'train': 23, 'test': 10, 'val': 6}
    (tmp_path/'val_list.txt').write_text(films[0])
    with pytest.raises(ValueError, match=f'in two of .*first {films[0]}'): DATASETS['chestxray14'].table(tmp_path)
    (tmp_path/'val_list.txt').write_text('')
    with pytest.raises(ValueError, match=f'6 of 39 images are in no list.*{films[24]}'):
        DATASETS['chestxray14'].table(tmp_path)
    (tmp_path/'test_list.txt').unlink()
    with pytest.raises(FileNotFoundError, match='no test_list.txt'): DATASETS['chestxray14'].table(tmp_path)

def test_chestxray14_a_list_that_cuts_a_patient(tmp_path):
    films = nih(tmp_path)
    (tmp_path/'train_val_list.txt').write_text('\n'.join(films[:31]))
    (tmp_path/'test_list.txt').write_text('\n'.join(films[31:]))
    with pytest.raises(ValueError, match='patient 00000016'): ready('chestxray14', tmp_path, tmp_path/'w')

def test_chestxray14_faults(tmp_path):
    films = nih(tmp_path)
    (tmp_path/'images'/films[8]).unlink()
    with pytest.raises(MatchError, match=f'1 of 39 rows have no image, first {films[8]}'):
        DATASETS['chestxray14'].table(tmp_path)
    draw(tmp_path/'images'/films[8]); path = tmp_path/'Data_Entry_2017_v2020.csv'
    text = path.read_text(); path.write_text(text.replace('Cardiomegaly,', 'Heart big,', 1))
    with pytest.raises(ValueError, match='Heart big'): DATASETS['chestxray14'].table(tmp_path)
    path.write_text(text.replace('Finding Labels', 'Findings'))
    with pytest.raises(ValueError, match='no column Finding Labels'): DATASETS['chestxray14'].table(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match='Data_Entry_2017'): DATASETS['chestxray14'].table(tmp_path)

# --- colonoscopy -----------------------------------------------------------------------------------------------------

def hyper(root, words=('polyps', 'hemorroids', 'ulcerative-colitis-0-1'), n=10,
          place='labeled-images/lower-gi-tract/pathological-findings'):
    for w, word in enumerate(words):
        for i in range(n): draw(root/place/word/f'{word}-{i}.jpg', 1000*(w + 1) + i)
    return root

def test_hyperkvasir_spellings_and_places(tmp_path):
    hyper(tmp_path); hyper(tmp_path, ['z-line'], place='labeled-images/upper-gi-tract/anatomical-landmarks')
    draw(tmp_path/'labeled-images/lower-gi-tract/pathological-findings/polyps/._polyps-0.jpg').write_bytes(b'Mac OS X')
    draw(tmp_path/'segmented-images/images/cju.jpg'); draw(tmp_path/'unlabeled-images/images/x.jpg')
    table = DATASETS['hyperkvasir'].table(tmp_path)
    assert (dict(table.label.value_counts()) == {'polyp': 10, 'hemorrhoids': 10, 'ulcerative-colitis-grade-0-1': 10}
            and set(table.label) <= set(HYPERKVASIR_CLASSES))
    flat = hyper(tmp_path/'flat', ['polyp', 'cecum'], place='.')    # only class folders
    assert set(DATASETS['hyperkvasir'].table(flat).label) == {'polyp', 'cecum'}
    hyper(tmp_path, ['tumour'], n=1)
    with pytest.raises(ValueError, match='tumour is no class of HyperKvasir'): DATASETS['hyperkvasir'].table(tmp_path)
    draw(tmp_path/'none'/'a.jpg')
    with pytest.raises(FileNotFoundError, match='labeled-images'):
        DATASETS['hyperkvasir'].table(tmp_path/'none')

def test_hyperkvasir_label_file(tmp_path):
    for i in range(6): draw(tmp_path/'frames'/f'{i}.jpg', i)
    rows = [f'{i}.jpg;{"hemorroids" if i % 2 else "normal-cecum"};{i % 2}' for i in range(6)]
    # semicolons; loose images
    (tmp_path/'2_fold_split.csv').write_text('\n'.join(['file-name;class-name;split-index', *rows]))
    assert list(DATASETS['hyperkvasir'].table(tmp_path).label) == ['cecum', 'hemorrhoids']*3
    draw(tmp_path/'polyps'/'0.jpg'); (tmp_path/'frames'/'0.jpg').unlink()
    with pytest.raises(ValueError, match='another class folder'): DATASETS['hyperkvasir'].table(tmp_path)

def masked(root, names, images='images', masks='masks', ending='.jpg'):
    for i, name in enumerate(names):
        draw(root/images/f'{name}{ending}', 50 + i)
        disc = (np.hypot(*np.mgrid[-24:24, -24:24]) < 12)
        (root/masks).mkdir(parents=True, exist_ok=True)
        Image.fromarray(disc.astype(np.uint8)*255).save(root/masks/f'{name}{ending}')
    return root

def test_kvasir_seg_and_its_jpeg_masks(tmp_path):
    masked(tmp_path/'Kvasir-SEG', [f'cju{i}' for i in range(20)])
    table = ready('kvasir_seg', tmp_path, tmp_path/'w')
    assert set(table.label) == {'polyp'} and set(table.split) == set(SPLITS) and (table.split == 'test').sum() == 4
    assert all(Path(m).stem == Path(f).stem and '/masks/' in m for m, f in zip(table['mask'], table.file_name))
    path, disc = tmp_path/table['mask'][0], np.hypot(*np.mgrid[-24:24, -24:24]) < 12
    assert len(np.unique(Image.open(path))) > 2, 'JPEG leaves grays'
    assert (load_mask(path) != disc).mean() < 0.01 and load_mask(path, 24).shape == (24, 24)
    (tmp_path/'Kvasir-SEG'/'masks'/'cju3.jpg').unlink()
    with pytest.raises(MatchError, match='1 of 20 images have no row, first cju3'):
        DATASETS['kvasir_seg'].table(tmp_path)

def test_cvc_clinicdb_sequences_stay_together(tmp_path):
    masked(tmp_path/'cvc', range(1, 105), 'Original', 'Ground Truth', '.tif')
    masked(tmp_path/'cvc'/'PNG', range(1, 105), 'Original', 'Ground Truth', '.png') # the same frames twice
    table = ready('cvc_clinicdb', tmp_path, tmp_path/'w')
    assert len(table) == 104 and table.group.nunique() == 6 and cut(table) == 0 and (table.split == 'test').any()
    frames = table.file_name.map(lambda f: int(Path(f).stem))
    assert list(frames) == list(range(1, 105)) and table.group.nunique() == sum(s <= 104 for s in CVC_STARTS)
    pd.DataFrame(dict(frame_id=range(1, 105), sequence_id=[1]*52 + [2]*52)).to_csv(tmp_path/'cvc'/'metadata.csv', index=False)
    assert list(DATASETS['cvc_clinicdb'].table(tmp_path).group.value_counts()) == [52, 52]
    pd.DataFrame(dict(frame_id=range(1, 104), sequence_id=1)).to_csv(tmp_path/'cvc'/'metadata.csv', index=False)
    with pytest.raises(ValueError, match='no row for frame 104'): DATASETS['cvc_clinicdb'].table(tmp_path)

def test_colonoscopy_takes_what_is_there(tmp_path):
    draw(tmp_path/'x'/'a.jpg')
    with pytest.raises(FileNotFoundError, match='none of HyperKvasir'):
        DATASETS['colonoscopy'].table(tmp_path/'x')
    masked(tmp_path/'data'/'Kvasir-SEG', [f'cju{i}' for i in range(10)])
    assert set(DATASETS['colonoscopy'].table(tmp_path/'data').source) == {'kvasir_seg'}
    hyper(tmp_path/'data'/'hyper'); masked(tmp_path/'data'/'CVC-ClinicDB', range(1, 60), ending='.png')
    twin = tmp_path/'data/hyper/labeled-images/lower-gi-tract/pathological-findings/polyps/polyps-4.jpg'
    # the same frame under another name
    Image.open(twin).resize((40, 40)).save(tmp_path/'data/Kvasir-SEG/images/cju7.jpg', quality=70)
    # a frame of a sequence
    Image.open(tmp_path/'data/CVC-ClinicDB/images/30.png').save(tmp_path/'data/Kvasir-SEG/images/cju8.jpg')
    table = ready('colonoscopy', tmp_path/'data', tmp_path/'w', seed=1)
    assert dict(table.source.value_counts()) == {'cvc_clinicdb': 59, 'hyperkvasir': 30, 'kvasir_seg': 10} and cut(table) == 0
    group = dict(zip(table.file_name.map(lambda f: Path(f).stem), table.group))
    assert group['cju7'] == group['polyps-4'] and group['cju8'] == group['30'] == group['26'] != group['1']
    assert table['mask'].isna().sum() == 30 and set(table['mask'].dropna().map(lambda m: Path(m).parent.name)) == {'masks'}
    (tmp_path/'data/CVC-ClinicDB/masks/5.png').unlink()
    with pytest.raises(MatchError): DATASETS['colonoscopy'].table(tmp_path/'data')  # a torn set is not a missing one

# --- a label file of one's own ---------------------------------------------------------------------------------------

@pytest.fixture
def ward(tmp_path):
    for i in range(30): draw(tmp_path/'films'/f'day{i % 3}'/f'{i:03d}.png', i, mode='L')
    rows = [f'{i:03d};{"None" if i % 2 else "NA"};{i//3:03d}' for i in range(30)]
    (tmp_path/'ward.csv').write_text('\n'.join(['File;Finding;Patient', *rows]), encoding='utf-8-sig')
    return tmp_path

def columns(w, labels='ward.csv'):
    return dict(labels=w/labels, image_column='File', label_column='Finding', group_column='Patient')

def test_csv_cells_are_taken_as_written(ward):
    table = ready('csv', ward/'films', ward/'w', modality='fundus', **columns(ward))
    assert set(table.label) == {'None', 'NA'} and set(table.modality) == {'fundus'} and table.group[0] == '000' and cut(table) == 0
    assert table.attrs['labels'].endswith('ward.csv') and table.attrs['group_column'] == 'Patient' and table.attrs['test'] == 0.1
    assert ready('csv', ward/'films', ward/'w', modality='fundus', **columns(ward)).equals(table)
    with pytest.raises(FileExistsError, match='group_column was Patient, now None'):
        ready('csv', ward/'films', ward/'w', modality='fundus', **columns(ward) | dict(group_column=None))

@pytest.mark.parametrize('name', ['day1/004', 'day1/004.png', './day1/004.png', 'day1\\004.png', '004', '004.png'])
def test_csv_names_of_images(ward, name):
    (ward/'one.csv').write_text(f'File,Finding\n{name},x\n')
    with pytest.warns(UserWarning, match='29 images below .* have no row'):
        assert csv_table(ward/'films', ward/'one.csv', 'File', 'Finding').file_name[0] == 'day1/004.png'

@pytest.mark.parametrize('rows, message', [
    ('900,x,1', '1 of 1 rows have no image below .*first 900'),
    ('004,,1', '1 rows have no Finding, first 004'),
    ('004,x,1\nday1/004.png,x,1', 'lists 1 images twice, first day1/004.png'),
    ('same,x,1', 'same may be day0/same.png or day1/same.png'),
])
def test_csv_faults(ward, rows, message):
    for day in (0, 1): draw(ward/'films'/f'day{day}'/'same.png')
    (ward/'bad.csv').write_text('File,Finding,Patient\n' + rows)
    with pytest.raises(ValueError, match=message): csv_table(ward/'films', **columns(ward, 'bad.csv'))

def test_groups_beside_a_folder(tmp_path):
    "A blank group is no group that all blanks share."
    for i in range(12): draw(tmp_path/'f'/'ab'[i % 2]/f'{i:02}.png', i)
    names = [f'{"ab"[i % 2]}/{i:02}.png' for i in range(12)]
    def groups(*cells):
        (tmp_path/'f'/'groups.csv').write_text('file_name,group\n' + ''.join(f'{n},{c}\n' for n, c in zip(names, cells)))
        return folder_table(tmp_path/'f').set_index('file_name').group[names].tolist()
    assert groups('007', 7, ' 7 ', 'None', 'nan', *range(10, 17)) == ['007', '7', '7', 'None', 'nan', *map(str, range(10, 17))]
    with pytest.raises(ValueError, match='groups.csv has no group for 11 of 12 images, first a/02.png'):
        groups('p1', *['']*11)
    with pytest.raises(ValueError, match='has no group for 1 of 12'): groups(*['p1']*11, ' ')

def test_csv_splits_and_unknown_groups(ward):
    rows = [f'{i:03d},{"ab"[i % 2]},{"" if i in (4, 5) else i//3},{"Test" if i >= 24 else ""}' for i in range(30)]
    (ward/'split.csv').write_text('\n'.join(['File,Finding,Patient,split', *rows]))
    with pytest.warns(UserWarning, match='2 of 30 rows .* have no Patient, first 004'):
        table = csv_table(ward/'films', **columns(ward, 'split.csv'))
    for seed in range(5):
        done = assign_splits(table, 0.2, 0.2, seed)
        assert (set(done.split[[4, 5]]) == {'train'} and list(done.index[done.split == 'test']) == list(range(24, 30))
                and cut(done) == 0 and 'val' in set(done.split))
    (ward/'split.csv').write_text('File,Finding,split\n001,a,trian\n')
    with pytest.raises(ValueError, match="split 'trian'"): csv_table(ward/'films', ward/'split.csv', 'File', 'Finding')

def test_rows_without_a_split_go_where_their_group_is():
    table = pd.DataFrame(dict(file_name=list('abcdef'), label='x', split=['test', None, None, None, None, None],
                              group=[1, 1, 2, 3, 4, 5]))
    assert list(assign_splits(table, 0.25, 0.1, 0).split[:2]) == ['test', 'test']
    with pytest.raises(ValueError, match='1 groups are cut by the given splits, first 1'):
        assign_splits(table.assign(split=['test', 'train', None, None, None, None]), 0.1, 0.1, 0)

def test_a_table_that_is_none(tmp_path):
    (tmp_path/'a.csv').write_bytes(b'\xff\xfe\x00\x01binary')
    with pytest.raises(ValueError, match='a.csv is not a CSV table'): read_csv(tmp_path/'a.csv', ['image'])

# --- what is missing, and the words of the user ----------------------------------------------------------------------

def test_check_lists_what_is_missing(tmp_path):
    films = nih(tmp_path)
    report = check_dataset('chestxray14', tmp_path).set_index('part')
    assert report.found['images'] == 40 and report.found['images in the table'] == 39 and report.found['groups'] == 20
    assert (report.verdict['official test list'].startswith('not there: patients are split')
            and report.found['Effusion'] == 8 and report.expected['Effusion'] == 3955)
    for f in films[5:8]: (tmp_path/'images'/f).unlink()
    report = check_dataset('chestxray14', tmp_path)
    assert (list(report.part[report.verdict == 'MISSING']) == [f'image {f}' for f in films[5:8]]
            and (report.verdict == 'FAULT').sum() == 1)
    (tmp_path/'Data_Entry_2017_v2020.csv').unlink()
    report = check_dataset('chestxray14', tmp_path)
    assert 'labels' in list(report.part[report.verdict == 'MISSING'])

def test_check_knows_a_whole_set(tmp_path):
    masked(tmp_path/'CVC-ClinicDB', range(1, 613), ending='.png')
    report = check_dataset('cvc_clinicdb', tmp_path)
    assert set(report.verdict[:3]) == {'whole'} and dict(zip(report.part, report.found))['groups'] == 29
    draw(tmp_path/'CVC-ClinicDB/images/613.png'); draw(tmp_path/'CVC-ClinicDB/masks/613.png')
    assert 'MORE than published' in set(check_dataset('cvc_clinicdb', tmp_path).verdict)

def test_records_hold_what_a_table_needs():
    for d in DATASETS.values():
        if d.counts:
            assert d.modality and d.url.startswith('https://') and d.terms and d.citation and d.size and d.needs, d.name
    assert [d.test for d in DATASETS.values() if d.name in ('phantoms', 'folder', 'csv', 'isic2018')] == [0.1]*4

def test_terms_travel_with_the_table(tmp_path):
    about = ready('isic2019', isic2019(tmp_path), tmp_path/'w').attrs['about']
    assert (about['commercial'] is False and 'CC BY-NC' in about['terms'] and 'as far as known' in about['terms']
            and 'Combalia' in about['citation'])

def test_modality_of_fixed_and_free_sets(tmp_path):
    isic2019(tmp_path/'i')
    with pytest.raises(ValueError, match="modality 'fundus' is not known"):
        ready('isic2019', tmp_path/'i', tmp_path/'w', modality='fundus')
    with pytest.raises(ValueError, match='holds no chest_xray image'):
        ready('isic2019', tmp_path/'i', tmp_path/'w', modality='chest_xray')
    for i in range(12): draw(tmp_path/'f'/'ab'[i % 2]/f'{i}.png', i)
    assert set(ready('folder', tmp_path/'f', tmp_path/'w', modality='fundus').modality) == {'fundus'}
    with pytest.raises(ValueError, match='is no name'): ready('folder', tmp_path/'f', tmp_path/'w2', modality='../../etc')
    with pytest.raises(ValueError, match='labels is missing'): ready('csv', tmp_path/'f', tmp_path/'w2')
    with pytest.raises(ValueError, match='does not fit folder'):
        ready('folder', tmp_path/'f', tmp_path/'w2', labels='x.csv')

def test_a_share_of_the_test_split_that_is_asked_for(tmp_path):
    table = ready('isic2019', isic2019(tmp_path), tmp_path/'w', test=0.5)
    assert table.attrs['test'] == 0.5 and (table.split == 'test').sum() == 16

# --- the command line ------------------------------------------------------------------------------------------------

def test_cli_csv_and_check(ward):
    args = ('prepare', '--dataset', 'csv', '--root', ward/'films', '--labels', ward/'ward.csv', '--image-column', 'File',
            '--label-column', 'Finding', '--group-column', 'Patient', '--modality', 'chest_xray')
    text = vap(*args, '--check').stdout
    assert 'None' in text and '30' in text and not (ward/'w').exists()
    vap(*args, '--out', ward/'w')
    assert cut(pd.read_parquet(ward/'w'/'table.parquet')) == 0
    assert '--out' in fails(*args)
    (ward/'films'/'day0'/'000.png').unlink()
    done = vap(*args, '--check', ok=False)
    assert (done.returncode == 1 and 'MISSING   image 000' in done.stdout and 'not complete' in done.stderr
            and 'Traceback' not in done.stderr)

def test_one_class_is_enough_to_train(tmp_path):
    masked(tmp_path/'Kvasir-SEG', [f'cju{i}' for i in range(20)])
    verb('prepare', '--dataset', 'kvasir_seg', '--root', tmp_path, '--out', tmp_path/'w')
    walk(tmp_path/'w')

# --- the real images -------------------------------------------------------------------------------------------------

def verb(*args) -> str:
    "A verb within this process, which loads torch once; returns what it prints."
    return CliRunner().invoke(app, list(map(str, args)), catch_exceptions=False).stdout

def walk(w):
    "From a table to a model: describe, encode, a few steps."
    verb('describe', w); verb('encode', w); verb('train', w, '--steps', 3)
    assert (w/'models'/'vap'/'pipeline'/'model_index.json').exists()

def few(labels, n): return labels.groupby(labels).head(n).index

def small_isic2018(root):
    for part in ('Training', 'Test'):
        truth = next((REAL/'isic2018'/f'ISIC2018_Task3_{part}_GroundTruth').glob('*.csv'))
        rows = pd.read_csv(truth).set_index('image'); keep = few(rows.idxmax(axis=1), 6)
        for folder in ('GroundTruth', 'Input'): (root/f'ISIC2018_Task3_{part}_{folder}').mkdir()
        rows.loc[keep].reset_index().to_csv(root/truth.parent.name/truth.name, index=False)
        for i in keep:
            shutil.copy(REAL/'isic2018'/f'ISIC2018_Task3_{part}_Input'/f'{i}.jpg', root/f'ISIC2018_Task3_{part}_Input')
    shutil.copy(REAL/'isic2018'/'HAM10000_metadata.csv', root)

def small_isic2019(root):
    name = 'ISIC_2019_Training_GroundTruth.csv'
    rows = pd.read_csv(REAL/'isic2019'/name).set_index('image'); keep = few(rows.idxmax(axis=1), 10)
    rows.loc[keep].reset_index().to_csv(root/name, index=False); (root/'ISIC_2019_Training_Input').mkdir()
    for i in keep: shutil.copy(REAL/'isic2019'/'ISIC_2019_Training_Input'/f'{i}.jpg', root/'ISIC_2019_Training_Input')

def small_chestxray14(root):
    source, name = REAL/'chestxray14', 'Data_Entry_2017_v2020.csv'
    lines = (source/name).read_text().splitlines() # as text: the header is part of what is tested
    labels = pd.Series({l.split(',')[0]: l.split(',')[1] for l in lines[1:]})
    side = {n: f for f in ('train_val_list.txt', 'test_list.txt') for n in (source/f).read_text().split()}
    single = labels[~labels.str.contains('|', regex=False)]
    keep = {*few(single + single.index.map(side), 4), *labels.index[labels.str.contains('|', regex=False)][:5]}
    (root/name).write_text('\n'.join([lines[0], *(l for l in lines[1:] if l.split(',')[0] in keep)]))
    (root/'images').mkdir()
    for i in keep: shutil.copy(source/'images'/i, root/'images')
    for f in ('train_val_list.txt', 'test_list.txt'): shutil.copy(source/f, root)

def small_hyperkvasir(root):
    source = REAL/'colonoscopy'
    for folder in {p.parent for p in source.rglob('*.jpg') if 'hyperkvasir' in p.parts}:
        (root/folder.relative_to(source)).mkdir(parents=True)
        for p in sorted(folder.glob('*.jpg'))[:12]: shutil.copy(p, root/folder.relative_to(source))

def small_masked(place):
    def copy(root):
        pairs = [p for p in sorted((REAL/'colonoscopy').rglob('*'))
                 if p.parent.name.lower() in ('images', 'original', 'masks', 'ground truth') and place in str(p).lower()]
        keep = sorted({p.stem for p in pairs})[:30]
        for p in pairs:
            if p.stem in keep:
                (root/p.relative_to(REAL).parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(p, root/p.relative_to(REAL))
    return copy

SETS = {'isic2018': ('isic2018', small_isic2018), 'isic2019': ('isic2019', small_isic2019),
        'chestxray14': ('chestxray14', small_chestxray14), 'hyperkvasir': ('colonoscopy/hyperkvasir', small_hyperkvasir),
        'kvasir_seg': ('colonoscopy/Kvasir-SEG', small_masked('kvasir-seg')),
        'cvc_clinicdb': ('colonoscopy/CVC-ClinicDB', small_masked('cvc')),
        'colonoscopy': ('colonoscopy/hyperkvasir', small_hyperkvasir)}

def at_hand(name):
    if not (REAL/SETS[name][0]).is_dir():
        pytest.skip(f'no real images of {name}: '
                    f'there is no {SETS[name][0]} in VAP_DATA, nor in shared/data beside the repository')

@pytest.mark.parametrize('name', SETS)
def test_the_whole_way_on_real_images(name, tmp_path):
    at_hand(name)
    root, w = tmp_path/'root', tmp_path/'w'; root.mkdir(); SETS[name][1](root)
    said = verb('prepare', '--check', '--dataset', name, '--root', root)
    assert 'groups' in said and 'FAULT' not in said and 'MISSING' not in said
    verb('prepare', '--dataset', name, '--root', root, '--out', w)
    table = pd.read_parquet(w/'table.parquet')
    assert set(table.split) == set(SPLITS) and cut(table) == 0 and set(table.modality) == {DATASETS[name].modality}
    walk(w)
    if name == 'isic2018': # the main job, short: two models under one protocol, judged on every split
        q = tmp_path/'q'
        with pytest.warns(UserWarning, match='not shown fit for isic2018'):
            verb('quickstart', '--dataset', name, '--root', root, '--out', q, '--minutes', .1, '--n', 12,
                 '--splits', 'test,val,train', '--prompts', 'bank,own')
        found = json.loads((q/'results.json').read_text())
        for split in SPLITS:
            for method in ('class', 'class+text', 'class+text (own)'):
                figures = found[split][method]
                assert 4 <= figures['n'] <= 12 and min(figures['fid'], figures['fid_floor']) > 1, 'neither is that of copies'
        assert len({found[s]['class']['steps'] for s in SPLITS}) == 1 and (q/'report.html').exists() and (q/'generated.png').exists()
        with pytest.warns(UserWarning, match='not shown fit for isic2018'):
            verb('evaluate', q/'samples'/'test-class', '--real', q)
    words = [json.loads(l) for l in (w/'descriptions.jsonl').read_text().splitlines()]
    assert {x['file_name'] for x in words} == set(table.file_name) and len({x['t_mix'] for x in words}) > len(words)//4, (
        'real images get varied descriptions')

@pytest.mark.parametrize('name', ['isic2018', 'isic2019', 'chestxray14', 'hyperkvasir'])
def test_real_tables_against_the_publishers(name):
    "Names and counts of the whole folder; no image is opened."
    at_hand(name)
    report = check_dataset(name, REAL/SETS[name][0])
    assert not set(report.verdict) & {'FAULT', 'MISSING', 'MORE than published'}
    whole = set(report.part[report.verdict == 'whole'])
    # the official test set is complete
    if name == 'isic2018': assert {f'test {c}' for c in ISIC2018_CLASSES} <= whole
    if name == 'hyperkvasir': assert {'polyp', 'hemorrhoids', *(c for c in HYPERKVASIR_CLASSES if 'colitis' in c)} <= whole

def test_real_isic2018_that_broke_off(tmp_path):
    at_hand('isic2018')
    root = tmp_path/'isic'; root.mkdir(); small_isic2018(root)
    gone = sorted((root/'ISIC2018_Task3_Training_Input').glob('*.jpg'))[:3]
    for p in gone: p.unlink()
    with pytest.raises(MatchError, match=f'3 of .* rows have no image, first {gone[0].stem}'):
        ready('isic2018', root, tmp_path/'w')
    path = next((root/'ISIC2018_Task3_Training_GroundTruth').glob('*.csv'))
    pd.read_csv(path).rename(columns={'MEL': 'Melanoma'}).to_csv(path, index=False)
    with pytest.raises(ValueError, match=f'{path.name} has no column MEL'): ready('isic2018', root, tmp_path/'w')

def test_shares_asked_for_reach_phantoms(tmp_path):
    counts = lambda **k: prepare('phantoms', tmp_path/'p', tmp_path/str(k), n=60, size=16, modality='dermoscopy',
                                 progress=False, **k).split.value_counts().to_dict()
    assert counts() == dict(train=48, val=6, test=6)
    found = counts(test=.3, val=.05)
    assert abs(found['test'] - 18) <= 2 and abs(found['val'] - 3) <= 2

def test_a_comma_in_a_cell_needs_quotes(tmp_path):
    from vap_diffusion.datasets import read_csv
    (tmp_path/'a.csv').write_text('image,label\na,melanoma, in situ\nb,nevus\n')
    with pytest.raises(ValueError, match='more cells than columns .a,melanoma, in situ.'):
        read_csv(tmp_path/'a.csv', ['image', 'label'], text=True)
    (tmp_path/'a.csv').write_text('image,label\na,"melanoma, in situ",,\nb,nevus,,\n')
    assert read_csv(tmp_path/'a.csv', ['image', 'label'], text=True).label.tolist() == ['melanoma, in situ', 'nevus']

def test_a_link_in_a_circle_is_walked_once(tmp_path):
    from vap_diffusion.datasets import list_images
    for k in 'ab': (tmp_path/k).mkdir(); Image.new('RGB', (8, 8)).save(tmp_path/k/'0.png')
    (tmp_path/'a'/'up').symlink_to('..')
    assert [str(f) for f in list_images(tmp_path)] == ['a/0.png', 'b/0.png']

def test_a_class_called_all(tmp_path):
    for k in ('all', 'hem'):
        (tmp_path/'root'/k).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(make_phantom('nevus', i, 16).image).save(tmp_path/'root'/k/f'{i}.png')
    done = CliRunner().invoke(app, ['prepare', '--dataset', 'folder', '--root', str(tmp_path/'root'), '--out', str(tmp_path/'w')])
    assert done.exit_code == 0 and '(all)' in done.output, done.output

# --- what is the machine's fault, and what the file's ------------------------------------------------------------------

def test_a_machine_that_fails_is_not_a_damaged_image(tmp_path, monkeypatch):
    path = draw(tmp_path/'a.png')
    def fails_once(*a, **k): raise OSError(24, 'Too many open files')
    with monkeypatch.context() as m:
        m.setattr(Image, 'open', fails_once)
        with pytest.raises(OSError, match='Too many open files'): load_image(path)
    with monkeypatch.context() as m:
        m.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
        with pytest.raises(ValueError, match='million pixels; scale it down'): load_image(path)
    assert load_image(path).shape == (24, 24, 3)

@pytest.mark.parametrize('low, high', [(0, 1), (0, 1.02), (-1, 1), (-3, 3), (0, 4095)])
def test_float_images_keep_their_range(tmp_path, low, high):
    values = np.linspace(low, high, 24*24, dtype=np.float32).reshape(24, 24)
    if high > 100: values = values.round()
    Image.fromarray(values).save(tmp_path/'a.tiff')
    assert load_image(tmp_path/'a.tiff').max() == 255

@pytest.mark.parametrize('data, said', [
    ('image,label\na,b\nc,d,e\n'.encode(), 'double quotes'), ('image,label\nä,b\n'.encode('cp1252'), 'CSV UTF-8'),
    ('image,label\nä,b\n'.encode('utf-16'), 'CSV UTF-8'), (b'image,label\n', 'no rows'), (b'', 'is empty')])
def test_label_files_as_spreadsheets_save_them(tmp_path, data, said):
    (tmp_path/'l.csv').write_bytes(data)
    with pytest.raises(ValueError, match=said): read_csv(tmp_path/'l.csv', ['image', 'label'])

def test_a_file_name_that_is_not_utf8_is_named(tmp_path):
    draw(tmp_path/'A'/'a.png'); source = draw(tmp_path/'A'/'b.png')
    try: os.rename(source, os.fsencode(tmp_path/'A') + b'/l\xe4sion.png')
    except OSError: pytest.skip('this file system takes UTF-8 names only')
    with pytest.raises(ValueError, match='rename that file'): folder_table(tmp_path)

def test_phantoms_that_are_there_are_taken_with_a_word(tmp_path):
    ready('phantoms', tmp_path/'p', tmp_path/'w', n=12, size=32)
    with pytest.warns(UserWarning, match='holds 12 phantoms'):
        assert len(ready('phantoms', tmp_path/'p', tmp_path/'v', n=30, size=32)) == 12

def test_images_that_have_moved_are_found_again(tmp_path):
    for i in range(12): draw(tmp_path/'a'/'ab'[i % 2]/f'{i}.png', i)
    before = ready('folder', tmp_path/'a', tmp_path/'w', modality='dermoscopy')
    (tmp_path/'a').rename(tmp_path/'b')
    after = ready('folder', tmp_path/'b', tmp_path/'w', modality='dermoscopy')
    assert (after.equals(before) and after.attrs['root'] == str(tmp_path/'b') == load_table(tmp_path/'w').attrs['root']
            and after.attrs['source'] == before.attrs['source'])
    draw(tmp_path/'b'/'a'/'new.png', 99)
    with pytest.raises(FileExistsError, match='are not those that .* with its descriptions'):
        ready('folder', tmp_path/'b', tmp_path/'w', modality='dermoscopy')

def test_a_working_folder_among_the_images_is_refused(tmp_path):
    draw(tmp_path/'a'/'a'/'1.png')
    with pytest.raises(ValueError, match='lies inside root'):
        ready('folder', tmp_path/'a', tmp_path/'a'/'w', modality='dermoscopy')

def test_a_link_to_nowhere_is_left_out(tmp_path):
    for i in range(12): draw(tmp_path/'a'/'ab'[i % 2]/f'{i}.png', i)
    (tmp_path/'a'/'a'/'dead.png').symlink_to(tmp_path/'gone.png')
    with pytest.warns(UserWarning, match='1 of 13 images are left out'):
        table = ready('folder', tmp_path/'a', tmp_path/'w', modality='dermoscopy')
    assert len(table) == 12 and 'dead.png' in (tmp_path/'w'/'excluded.csv').read_text()

def test_json_files(tmp_path):
    from vap_diffusion.datasets import read_json, write_json
    write_json(tmp_path/'new'/'x.json', dict(a=1)); assert read_json(tmp_path/'new'/'x.json') == dict(a=1)
    with pytest.raises(ValueError): write_json(tmp_path/'new'/'x.json', dict(a=float('nan')))
    assert read_json(tmp_path/'new'/'x.json') == dict(a=1)
    (tmp_path/'y.json').write_text('{')
    with pytest.raises(ValueError, match='y.json is damaged .*delete it'): read_json(tmp_path/'y.json')

def test_an_image_that_is_not_finite_is_named(tmp_path):
    from vap_diffusion.datasets import ImageError, load_image
    Image.fromarray(np.full((24, 24), np.inf, np.float32)).save(tmp_path/'x.tif')
    with pytest.raises(ImageError, match='no finite numbers'): load_image(tmp_path/'x.tif')
