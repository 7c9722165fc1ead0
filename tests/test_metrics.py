"""What would bore a reader of chapter 13: processes that merge, Inception's file, faults of the command."""
import json, subprocess, sys
from unittest import mock
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp

def points(seed, n=90): return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))

def share(rank, folder):
    "One of two processes: sees its part only, and must compute the figure of the whole."
    from vap_diffusion.metrics import ImprovedPrecisionRecall
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    metric, rows = ImprovedPrecisionRecall(), slice(0, 50) if rank == 0 else slice(50, 90)
    metric.update(points(0)[rows], real=True)
    metric.update(points(1)[rows], real=False)
    torch.save(metric.compute(), f'{folder}/{rank}.pt')
    dist.destroy_process_group()

def test_precision_and_recall_merge_across_processes(tmp_path):
    from vap_diffusion.metrics import ImprovedPrecisionRecall
    mp.spawn(share, (str(tmp_path),), nprocs=2)
    whole = ImprovedPrecisionRecall()
    whole.update(points(0), real=True)
    whole.update(points(1), real=False)
    for rank in range(2): torch.testing.assert_close(torch.load(tmp_path/f'{rank}.pt'), whole.compute())

def test_too_few_points():
    from vap_diffusion.metrics import ImprovedPrecisionRecall
    metric = ImprovedPrecisionRecall(k=5)
    with pytest.raises(ValueError, match='0 real images are too few for k = 5'): metric.compute()
    with pytest.raises(ValueError, match='k must be at least 1'): ImprovedPrecisionRecall(k=0)

def test_inception_from_a_file(tmp_path):
    "A file of random weights in torch-fidelity's layout: the real loading code, through torchmetrics."
    fidelity = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
    from vap_diffusion.metrics import evaluate, features_name, load_features
    file, make = tmp_path/'inception.pth', fidelity.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with mock.patch.object(fidelity, 'load_state_dict_from_url', lambda *a, **k: {}), mock.patch.object(make, 'load_state_dict', lambda *a: None):
        torch.save(make('inception-v3-compat', ['2048']).state_dict(), file)
    net, images = load_features(f'inception:{file}'), torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    features = net(images)
    assert features.shape == (12, 2048) and net.logits(features).shape == (12, 1008)
    with pytest.warns(UserWarning, match='not above the 2048 features'): result = evaluate(images, images, net, n=4)
    assert result['features'] == features_name(net) and result['features'].startswith('InceptionFeatures-')
    torch.save({'a': torch.zeros(2)}, tmp_path/'other.pth')
    with pytest.raises(ValueError, match="other.pth' does not hold torch-fidelity's Inception-v3 weights"): load_features(f"inception:{tmp_path/'other.pth'}")

def test_folder_of_another_network(tmp_path):
    from vap_diffusion.metrics import load_features
    (tmp_path/'config.json').write_text(json.dumps({'_class_name': 'UViT'}))
    with pytest.raises(ValueError, match='holds a UViT, not a FeatureNet'): load_features(tmp_path)

def test_recorded_command(tmp_path):
    "The command that made the shipped network, in small: trains, writes card and ladder; the second time it judges what is there."
    line = [sys.executable, '-m', 'vap_diffusion.metrics', '--out', tmp_path/'net', '--images', '40', '--steps', '2', '--n', '40', '--size', '32', '--ladder', tmp_path/'ladder.json']
    first = subprocess.run(line, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert '- steps: 2' in (tmp_path/'net'/'README.md').read_text()
    ladder = json.loads((tmp_path/'ladder.json').read_text())['phantoms: held-out phantoms']
    assert len(ladder['rungs']) == 19 and ladder['n'] == 40
    weights = (tmp_path/'net'/'diffusion_pytorch_model.safetensors').read_bytes()
    assert subprocess.run(line, capture_output=True).returncode == 0
    assert weights == (tmp_path/'net'/'diffusion_pytorch_model.safetensors').read_bytes()
