"""What would bore a reader of chapter 13: processes that merge, published definitions, memory, files of other networks,
faults of the command."""
import json, subprocess, sys
from pathlib import Path
from unittest import mock
import numpy as np
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
import bench_metrics

def points(seed, n=90): return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))

METRICS = ('precision_recall', 'density_coverage', 'fid', 'kid', 'is')

def filled(name, rows=slice(None), **kw):
    "A metric that has seen these rows of two known sets, in uneven batches."
    from torch import nn
    from torchmetrics.image.inception import InceptionScore
    from vap_diffusion.metrics import DensityCoverage, FrechetInceptionDistance, Given, ImprovedPrecisionRecall, KernelInceptionDistance
    make = dict(precision_recall=ImprovedPrecisionRecall, density_coverage=DensityCoverage,
                fid=lambda **k: FrechetInceptionDistance(Given(6), **k),
                kid=lambda **k: KernelInceptionDistance(Given(6), subset_size=90, subsets=1, **k),
                **{'is': lambda **k: InceptionScore(nn.Identity(), splits=1, **k)})
    metric, sets = make[name](**kw), (points(0)[rows], 0.8*points(1)[rows] + 0.3)
    for part in sets[1].split(17):
        if name == 'is': metric.update(part)
        else: metric.update(part, real=False)
    if name != 'is': metric.update(sets[0], real=True)
    return metric

def figures(metric):
    value = metric.compute()
    # one subset, one split: no deviation
    return torch.stack([torch.as_tensor(v, dtype=torch.float64)
                        for v in (value if isinstance(value, tuple) else (value,))]).nan_to_num()

def share(rank, folder):
    "One of two processes: sees its part only, and must compute the figures of the whole."
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    rows = slice(0, 50) if rank == 0 else slice(50, 90)
    torch.save({name: figures(filled(name, rows)) for name in METRICS}, f'{folder}/{rank}.pt')
    dist.destroy_process_group()

def test_metrics_merge_across_processes(tmp_path):
    mp.spawn(share, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path/f'{rank}.pt')
        for name in METRICS:
            torch.testing.assert_close(found[name], figures(filled(name)), rtol=1e-5, atol=1e-6,
                                       msg=lambda m: f'{name}: {m}')

@pytest.mark.parametrize('name', METRICS)
def test_metrics_merge_by_state(name):
    one, two, whole = filled(name, slice(0, 50)), filled(name, slice(50, 90)), figures(filled(name))
    one.merge_state(two)
    torch.testing.assert_close(figures(one), whole, rtol=1e-5, atol=1e-6)
    # a part alone gives another figure (KID: too few for its subset)
    if name != 'kid': assert not torch.allclose(figures(two), whole, rtol=1e-3)

# --- equal to what was published -------------------------------------------------------------------------------------

def published(real, fake, k, strict):
    "The four definitions, dense: Kynkaanniemi 2019, Eq. 1 and 2; Naeem 2020, Eq. 3 and 4. Distances by differences in numpy."
    distance = lambda a, b: np.sqrt(((a[:, None] - b[None])**2).sum(-1))
    within = np.less if strict else np.less_equal
    radius = lambda x: np.sort(distance(x, x), 1)[:, k]                 # column 0 is the point itself
    in_real, in_fake = (within(distance(real, fake), radius(real)[:, None]),
                        within(distance(fake, real), radius(fake)[:, None]))    # N M, M N
    return in_real.any(0).mean(), in_fake.any(0).mean(), in_real.sum()/(k*len(fake)), in_real.any(1).mean()

def cloud(kind, n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g)
    return {'smooth': x + 0.2*seed, 'far from 0': x + 1000, 'grid': (2*x).round(),
            'copies': x[:4].repeat(n//4 + 1, 1)[:n], 'one point': torch.ones(n, 5)}[kind]

@pytest.mark.parametrize('strict', (False, True))
@pytest.mark.parametrize('k', (1, 3, 5))
@pytest.mark.parametrize('kinds', (('smooth', 'smooth'), ('far from 0', 'far from 0'), ('grid', 'grid'),
                                   ('grid', 'copies'), ('copies', 'smooth'), ('one point', 'one point')))
def test_published_definitions(kinds, k, strict):
    "On ties, copies and clouds far from 0, too: there a matrix product alone decides wrongly. Chunks that do not divide the sets."
    from vap_diffusion.metrics import DensityCoverage, ImprovedPrecisionRecall
    real, fake = cloud(kinds[0], 70, 0), cloud(kinds[1], 90, 1)
    found = []
    for metric in (ImprovedPrecisionRecall(k=k, chunk=32, strict=strict), DensityCoverage(k=k, chunk=32, strict=strict)):
        metric.update(real, real=True)
        metric.update(fake, real=False)
        found += [float(x) for x in metric.compute()]
    np.testing.assert_allclose(found, published(real.double().numpy(), fake.double().numpy(), k, strict), rtol=1e-6)

def test_fid_kid_and_is_by_their_formulas():
    "Heusel 2017, Eq. 6 with scipy's matrix root; Binkowski 2018, Eq. 4; Salimans 2016."
    from scipy.linalg import sqrtm
    a, b = points(0).double().numpy(), (0.8*points(1) + 0.3).double().numpy()
    A, B = np.cov(a.T), np.cov(b.T)
    np.testing.assert_allclose(figures(filled('fid')),
                               [((a.mean(0) - b.mean(0))**2).sum() + np.trace(A + B - 2*sqrtm(A @ B).real)], rtol=1e-4)
    n, kernel = len(a), lambda x, y: (x @ y.T/6 + 1)**3
    off = lambda m: (m.sum() - np.trace(m))/(n*(n - 1))
    np.testing.assert_allclose(figures(filled('kid'))[0], off(kernel(a, a)) + off(kernel(b, b)) - 2*kernel(a, b).mean(), rtol=1e-4)
    p = np.exp(b)/np.exp(b).sum(1, keepdims=True)
    np.testing.assert_allclose(figures(filled('is'))[0], np.exp((p*np.log(p/p.mean(0))).sum(1).mean()), rtol=1e-5)

def test_torch_fidelity_gives_the_same():
    "Another implementation on the same arrays; its `prc` takes the generated images first."
    prc = pytest.importorskip('torch_fidelity.metric_prc', reason='torch-fidelity is not installed: a dev requirement')
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    real, fake = points(0), 0.8*points(1) + 0.3
    np.testing.assert_allclose(figures(filled('precision_recall')), prc.calculate_precision_recall_full(fake, real), rtol=1e-6)
    np.testing.assert_allclose(figures(filled('fid')), fid_statistics_to_metric(
        *(fid_features_to_statistics(x.double()) for x in (real, fake)), False)['frechet_inception_distance'], rtol=1e-4)
    np.testing.assert_allclose(figures(filled('kid'))[0], kid_features_to_metric(
        fake, real, kid_subsets=1, kid_subset_size=90, verbose=False)['kernel_inception_distance_mean'], rtol=1e-4)
    np.testing.assert_allclose(figures(filled('is'))[0], isc_features_to_metric(fake, splits=1)['inception_score_mean'], rtol=1e-5)

def test_memory_does_not_grow_with_the_distance_matrix():
    "Peak resident memory in a process of its own, small; results/metrics_memory.json has 20 000 x 20 000 x 2048."
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('peak memory is read from Linux /proc')
    found = bench_metrics.memory(6000, 16, ('ours', 'dense64'))
    assert found['ours']['working'] < 0.25*found['dense64']['working'], found
    np.testing.assert_allclose([found['ours'][k] for k in ('precision', 'recall')],
                               [found['dense64'][k] for k in ('precision', 'recall')], atol=2e-3)

# --- intervals, floors, faults ---------------------------------------------------------------------------------------

def noise(seed, n=64):
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))

@pytest.mark.filterwarnings('ignore:n = .* is not above')
def test_evaluate_has_floors_halves_and_intervals():
    from vap_diffusion.metrics import FeatureNet, evaluate, load_judge
    net = load_judge('phantoms')
    plain = evaluate(noise(0), noise(1), net, n=20)
    assert plain['half_splits']['n'] == 20 and plain['half_splits']['times'] == 5            # `real` is halved anyway: the same n
    assert not {'intervals', 'fid_infinity'} & set(plain)
    rich = evaluate(noise(0), noise(1), net, n=20, repeats=8, infinite=True)
    assert {k: rich[k] for k in plain} == plain and rich['repeats'] == 8                     # asking for more changes nothing else
    names = ('fid', 'kid', 'precision', 'recall', 'density', 'coverage')
    assert set(rich['intervals']) == {*names, *(f'{n}_floor' for n in names), 'is', 'is_real'}
    assert all(low <= rich[name] <= high for name, (low, high) in rich['intervals'].items())
    assert all(least <= mean <= most for mean, least, most in (rich['half_splits'][n] for n in names))
    # several sets, the floors once: as each by itself
    both = evaluate(noise(0), {'a': noise(1), 'b': noise(2)}, net, n=20, infinite=None)
    assert both['a'] == plain and both['b'] == evaluate(noise(0), noise(2), net, n=20) and plain['fid'] != both['b']['fid']
    with pytest.raises(ValueError, match='b has 30 images'):
        evaluate(noise(0), {'a': noise(1), 'b': noise(2, 30)}, net, n=31)
    assert 'fid_infinity' in evaluate(noise(0), noise(1), FeatureNet(widths=(4, 4), sample_size=16).eval(), n=32,
                                      infinite=None)  # 16 features
    with_floor = evaluate(noise(0), noise(1), net, n=6, floor_real=noise(2))
    assert with_floor['half_splits'] == {'n': 3, 'times': 0} and with_floor['k_coverage'] == 5
    assert evaluate(noise(0), noise(1), net, n=4)['k_coverage'] == 3
    json.dumps(rich, allow_nan=False)

def test_a_stopped_feature_training_goes_on(tmp_path, monkeypatch):
    "In the middle, and after its end: the network of an undisturbed run."
    from vap_diffusion import autoencoder, metrics
    call = lambda **kw: metrics.train_features(noise(0), ['a', 'b']*32, steps=6, batch_size=8, progress=False, **kw)
    whole, loss, looks, file = call(), metrics.instance_loss, [], tmp_path/'new'/'state.pt'
    monkeypatch.setattr(autoencoder.Kept, 'every', 0.)
    def stopped(*args):
        looks.append(1)
        if len(looks) == 4: raise KeyboardInterrupt
        return loss(*args)
    monkeypatch.setattr(metrics, 'instance_loss', stopped)
    with pytest.raises(KeyboardInterrupt): call(keep=file, log=[])
    for _ in range(2):
        log = []
        net = call(keep=file, log=log)
        assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), net.state_dict().values()))
        assert len(looks) == 4 + 3 and [row['step'] for row in log] == [1]

def test_too_few_points():
    from vap_diffusion.metrics import ImprovedPrecisionRecall
    metric = ImprovedPrecisionRecall(k=5)
    with pytest.raises(ValueError, match='0 real images are too few for k = 5'): metric.compute()
    with pytest.raises(ValueError, match='k must be at least 1'): ImprovedPrecisionRecall(k=0)

def test_inception_from_a_file(tmp_path):
    "A file of random weights in torch-fidelity's layout: the real loading code, through torchmetrics."
    fidelity = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3',
                                   reason='torch-fidelity is not installed: a dev requirement')
    from vap_diffusion.metrics import evaluate, features_name, load_judge
    file, make = tmp_path/'inception.pth', fidelity.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with (mock.patch.object(fidelity, 'load_state_dict_from_url', lambda *a, **k: {}),
          mock.patch.object(make, 'load_state_dict', lambda *a: None)):
        torch.save(make('inception-v3-compat', ['2048']).state_dict(), file)
    net, images = load_judge(f'inception:{file}'), torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    features = net(images)
    assert features.shape == (12, 2048) and net.logits(features).shape == (12, 1008)
    with pytest.warns(UserWarning, match='not above the 2048 features'):
        result = evaluate(images, images, net, n=4, splits=1)
    assert result['features'] == features_name(net) and result['features'].startswith('InceptionFeatures-')
    torch.save({'a': torch.zeros(2)}, tmp_path/'other.pth')
    with pytest.raises(ValueError, match="other.pth' does not hold torch-fidelity's Inception-v3 weights"):
        load_judge(f"inception:{tmp_path/'other.pth'}")

@pytest.mark.parametrize('name', ('test_vit', 'test_resnet', 'test_convnext', 'mobilenetv3_small_050', 'eva02_tiny_patch14_224'))
def test_any_timm_model(name, tmp_path):
    "Families that pool in different ways: features of the stated width, logits as the model's own, weights from a safetensors file."
    import torch.nn.functional as F
    from safetensors.torch import save_file
    from vap_diffusion.metrics import TimmFeatures, features_name, inception_score, load_judge
    net, images = TimmFeatures(name, pretrained=False), noise(0, 2)
    features = net(images)
    assert features.shape == (2, net.num_features) and features.dtype == torch.float32
    if net.net.num_classes:
        x = F.interpolate(images.float(), net.size, mode=net.interpolation, antialias=True).clamp(0, 255)
        torch.testing.assert_close(net.logits(features), net.net((x - net.mean)/net.std))
    else: assert np.isnan(inception_score(net.logits(features)))        # no classes, no score
    save_file(net.net.state_dict(), tmp_path/'net.safetensors')
    again = load_judge(f"timm:{name}@{tmp_path/'net.safetensors'}")
    assert features_name(again) == features_name(net)
    torch.testing.assert_close(again(images), features)

def test_timm_faults(tmp_path, monkeypatch):
    from vap_diffusion.metrics import load_judge
    with pytest.raises(ValueError, match="knows no model 'resnet17'"): load_judge('timm:resnet17')
    with pytest.raises(FileNotFoundError, match="give 'timm:test_vit@FILE'"):
        load_judge(f"timm:test_vit@{tmp_path/'no.pth'}")
    torch.save({'a': torch.zeros(2)}, tmp_path/'other.pth')
    with pytest.raises(ValueError, match="other.pth' does not hold weights of timm's 'test_vit'"):
        load_judge(f"timm:test_vit@{tmp_path/'other.pth'}")
    def offline(*a, **k): raise OSError('no network')
    monkeypatch.setattr('timm.create_model', offline)
    with pytest.raises(FileNotFoundError, match="go online once, or give 'timm:test_vit@FILE'"):
        load_judge('timm:test_vit')

def test_folder_of_another_network(tmp_path):
    from vap_diffusion.metrics import load_judge
    (tmp_path/'config.json').write_text(json.dumps({'_class_name': 'UViT'}))
    with pytest.raises(ValueError, match='holds a UViT, not a FeatureNet'): load_judge(tmp_path)

def test_recorded_command(tmp_path):
    "The command that made the shipped network, in small: trains, writes card and ladder; the second time it judges what is there."
    line = [sys.executable, '-m', 'vap_diffusion.metrics', '--out', tmp_path/'net', '--images', '40', '--steps', '2',
            '--n', '40', '--size', '32', '--ladder', tmp_path/'ladder.json']
    first = subprocess.run(line, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert '- steps: 2' in (tmp_path/'net'/'README.md').read_text()
    ladder = json.loads((tmp_path/'ladder.json').read_text())['phantoms: held-out phantoms']
    assert len(ladder['rungs']) == 19 and ladder['n'] == 40
    weights = (tmp_path/'net'/'diffusion_pytorch_model.safetensors').read_bytes()
    assert subprocess.run(line, capture_output=True).returncode == 0
    assert weights == (tmp_path/'net'/'diffusion_pytorch_model.safetensors').read_bytes()

@pytest.mark.filterwarnings('ignore:n = .* is not above')
def test_all_images_of_each_set():
    "As published tables have it: more painted images than real ones; the floor says how many it has."
    from torchmetrics.image.fid import FrechetInceptionDistance
    from vap_diffusion.metrics import Given, evaluate, extract, load_judge
    net, real, fake, other = load_judge('phantoms'), noise(0, 40), noise(1, 90), noise(2, 25)
    found = evaluate(real, fake, net, floor_real=other, unequal=True)
    assert (found['n'], found['n_real'], found['n_floor']) == (90, 40, 25)
    fid = FrechetInceptionDistance(Given(net.num_features)).set_dtype(torch.float64)
    fid.update(extract(net, real).double(), real=True); fid.update(extract(net, fake).double(), real=False)
    assert found['fid'] == pytest.approx(float(fid.compute()), rel=1e-4)
    for wrong in (dict(), dict(floor_real=other, n=20)):
        with pytest.raises(ValueError, match='unequal takes all'): evaluate(real, fake, net, unequal=True, **wrong)

def test_every_judge_of_a_result_has_a_ladder():
    "A network that judges in results/ has shown what it sees: results/feature_ladder*.json."
    import re
    results = Path(__file__).parent.parent/'results'
    ladders = list(results.glob('feature_ladder*.json'))
    judges = {m for f in results.glob('*.json') if f not in ladders
              for m in re.findall(r'"features": "(\w+-64-[0-9a-f]{8})"', f.read_text())}
    assert judges and judges == {l['features'] for f in ladders for l in json.loads(f.read_text()).values()}

def test_a_table_of_one_class_climbs_the_ladder():
    from vap_diffusion.metrics import load_judge, labelled_phantoms, missing_modes, on_card
    images, labels = labelled_phantoms(40, 5*10**6, 32)
    kinds = [kind for kind, *_ in missing_modes(images, ['a']*40, 20, 0)]
    assert 'class left out' not in kinds and 'half of the modes' in kinds
    net = load_judge('phantoms')
    assert (on_card(net, images[:3], images, 10, 0) == {}
            and 'n = 20' in on_card(net, images[:20], images[20:], 1500, 0)['held_out_real_images'])

def test_intervals_need_twice_as_many_images():
    from vap_diffusion.metrics import evaluate
    images = torch.randint(0, 256, (7, 3, 64, 64), dtype=torch.uint8)
    with pytest.raises(ValueError, match='too few for intervals'): evaluate(images, images, floor_real=images, repeats=3)

def test_adherence_reads_each_class_by_its_own_modality():
    import pandas as pd
    from vap_diffusion.phantoms import CLASSES, describe_attributes, make_phantom
    from vap_diffusion.quickstart import adherence_of
    made = [make_phantom(label, 920_000 + i) for i in range(4) for of in CLASSES.values() for label in of]
    manifest = pd.DataFrame(dict(label=[p.label for p in made],
                                 prompt=[describe_attributes(p.modality, p.attributes) for p in made]))
    table = manifest.assign(modality=[p.modality for p in made])
    found = adherence_of(np.stack([p.image for p in made]), manifest, table)
    assert found['mean'] > .9 > found['chance'] + .3 and found['n'] == len(made)

@pytest.mark.parametrize('how, said', [(dict(images=800), '800 phantoms are too few'), (dict(n=2), 'at least 4')])
def test_a_quickstart_that_cannot_end_does_not_begin(tmp_path, how, said):
    from vap_diffusion.quickstart import quickstart
    with pytest.raises(ValueError, match=said): quickstart(tmp_path/'q', progress=False, **how)
    assert not (tmp_path/'q').exists()

@pytest.mark.parametrize('side', ['real', 'fake'])
def test_a_row_that_is_not_finite_is_named(side):
    from vap_diffusion.metrics import ImprovedPrecisionRecall, compare
    sets = dict(real=points(0), fake=points(1)); sets[side][7, 2] = float('nan')
    with pytest.raises(ValueError, match=f'row 7 of the {side} features is not finite .1 of 90'): compare(**sets)
    metric = ImprovedPrecisionRecall()
    for name, x in sets.items(): metric.update(x, real=name == 'real')
    with pytest.raises(ValueError, match=f'row 7 of the {side} features'): metric.compute()

def test_chance_never_sets_an_image_against_its_own_prompt():
    from vap_diffusion.metrics import adherence
    from vap_diffusion.phantoms import describe_attributes, make_phantom
    two = [make_phantom('nevus', s) for s in (1, 2)]
    images, prompts = np.stack([p.image for p in two]), [describe_attributes(p.modality, p.attributes) for p in two]
    swapped = adherence(images, prompts[::-1], 'dermoscopy')['mean']
    assert adherence(images, prompts, 'dermoscopy')['chance'] == pytest.approx(swapped)
    with pytest.raises(ValueError, match='at least 2 images'): adherence(images[:1], prompts[:1], 'dermoscopy')
    with pytest.raises(ValueError, match='real_prompts'): adherence(images, prompts, 'dermoscopy', real=images)

@pytest.mark.parametrize('n, floor, how, said', [
    (3, None, {}, '1 images on a side are too few for k = 3: give at least 4 of each, of the real ones 8'),
    (10, 6, dict(repeats=2), '6 images are too few for intervals'), (3, 3, {}, '3 images on a side')])
def test_few_images_are_counted(n, floor, how, said):
    from vap_diffusion.metrics import evaluate
    with pytest.raises(ValueError, match=said):
        evaluate(noise(0, n), noise(1, n), floor_real=None if floor is None else noise(2, floor), **how)

def test_a_judge_without_classes_has_no_inception_score():
    from vap_diffusion.metrics import FeatureNet, evaluate
    found = evaluate(noise(0, 20), noise(1, 20), FeatureNet(widths=(4, 4), sample_size=16).eval(), splits=1)
    assert 'fid' in found and not {'is', 'is_real'} & set(found)

@pytest.mark.parametrize('prompt, wanted', [
    ('Round red lesion, a tenth of the image, soft border, dotted texture, centre; pale skin, normal light.',
     dict(shape='round', colour='red', **{'second colour': 'none'}, hair='none', corners='none')), # of the template: all of it
    ('The lesion is irregular and brown. There are no dark corners, and no hair.',
     dict(shape='irregular', colour='brown', hair='none', corners='none')),
    ('A brown or black lesion with a blurred border.', dict(border='soft'))])                      # its colour is left open
def test_wishes_of_free_text_are_what_it_claims(prompt, wanted):
    from vap_diffusion.metrics import wishes
    found = wishes(prompt, 'dermoscopy')
    assert wanted.items() <= found.items() and (';' in prompt or set(found) == set(wanted)), found

def test_a_modality_of_ones_own_has_no_adherence():
    import pandas as pd
    from vap_diffusion.quickstart import adherence_of
    manifest, table = (pd.DataFrame(dict(label=['a']*3, prompt=['Purple nuclei.']*3)),
                       pd.DataFrame(dict(label=['a'], modality=['histology'])))
    assert adherence_of(np.zeros((3, 8, 8, 3), np.uint8), manifest, table) == {}

@pytest.mark.filterwarnings('ignore:n = .* is not above')
def test_sets_may_be_called_anything():
    from vap_diffusion.metrics import evaluate
    with pytest.raises(ValueError, match='real has 10 images'):
        evaluate(noise(0), {'real': noise(1, 10), 'model': noise(2)}, n=20, floor_real=noise(3))
    with pytest.raises(ValueError, match='no generated images'): evaluate(noise(0), {})
    with pytest.raises(ValueError, match='Identity has no num_features'): evaluate(noise(0), noise(1), torch.nn.Identity())

def test_the_floor_has_the_classes_of_the_images_it_stands_beside():
    import pandas as pd
    from vap_diffusion.quickstart import floor_rows
    table = pd.DataFrame(dict(file_name=range(300), label=['a']*180 + ['b']*20 + ['a']*50 + ['b']*50, split=['train']*200 + ['test']*100))
    rows = table[table.split == 'test'].sample(40, random_state=1)
    floor = floor_rows(table, rows, 'test', 0)
    b = (rows.label == 'b').sum()
    assert (floor.split == 'train').all() and floor.file_name.is_unique and (floor.label == 'b').sum() == min(b, 20) and len(floor) == 40
    assert floor_rows(table, table[table.split == 'test'], 'test', 0).label.value_counts().to_dict() == dict(a=80, b=20)   # too few of b
    assert len(floor_rows(table, table[table.split == 'train'], 'train', 0)) == 100                                         # all there are

def test_a_module_without_weights_may_judge():
    from torch import nn
    from vap_diffusion.metrics import evaluate
    class Means(nn.Module):
        num_features = 3
        def forward(self, images): return images.float().mean((-1, -2))/255
    found = evaluate(noise(0, 40), noise(1, 40), Means(), n=20)
    assert found['fid'] >= 0 and 'is' not in found

def test_sets_of_equal_length_may_have_names_of_any_kind():
    from vap_diffusion.metrics import draw_sets
    sets = {('class', 'bank'): noise(1, 8), 'own': noise(2, 8)}
    assert all(len(x) == 8 for x in draw_sets(noise(0, 8), sets, noise(3, 8), None, 0)[1].values())
