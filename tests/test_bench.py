"""The bench of a GPU works from end to end before there is one."""
import json, shutil
import pytest, torch
import bench_gpu

@pytest.mark.parametrize('more', [
    pytest.param([], marks=pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a C++ compiler')),
    ['--no-compile']])
def test_gpu_bench_in_miniature(tmp_path, monkeypatch, more):
    bench_gpu.main(['--tiny', '--minutes', '0.05', '--out', str(tmp_path/'b.json'), *more])
    found = json.loads((tmp_path/'b.json').read_text())
    assert (found['tiny'] and found['compiled'] is not bool(more)
            and all(r['met'] is None and r['value'] > 0 for r in found['rows'])), 'a miniature meets no target'
    assert (found['whole_way']['training']['steps'] >= 1 and found['whole_way']['figures']['n'] == 8
            and 'fid_floor' in found['whole_way']['figures'])
    assert set(found['whole_way']['seconds']) == {'prepare', 'describe', 'encode', 'train', 'sample', 'evaluate'}

def test_without_a_gpu_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='no GPU here'): bench_gpu.main([])
    with pytest.raises(SystemExit, match='give --out'): bench_gpu.main(['--tiny'])

def test_the_largest_batch_that_fits():
    tried = []
    def make(batch):
        def job():
            tried.append(batch)
            if batch > 64: raise torch.OutOfMemoryError('too much')
        return job
    job, batch = bench_gpu.largest(make, 256)
    assert batch == 64 and tried == [256, 128, 64]
