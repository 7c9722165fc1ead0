"""The bench of a GPU, in one command: `python tests/bench_gpu.py --minutes 20` writes results/bench-gpu.json
and fails when a target is missed.

First the device's own rate and the training step of the paper's configuration (batch 256, bfloat16, compiled blocks)
against a plain U-ViT in the authors' way (`plain_uvit.py`: 256 padded text tokens, attention in float32, never
compiled), in bfloat16 elsewhere and in float32; alternating, medians. Then the whole way: phantoms of 128 px, the
`gpu` preset for some minutes, images painted and judged. `--tiny` does all of it in miniature on whatever is there."""
import argparse, json, statistics, sys, tempfile, time
from pathlib import Path
from bench import ROOT

FULL = dict(preset='paper', batch=256, words=100, runs=10, phantoms=8000, size=128, n=800,
            train=dict(preset='gpu'), changes={})
TINY = dict(preset='cpu', batch=4, words=20, runs=2, phantoms=80, size=64, n=8,
            train=dict(preset='cpu', embed_dim=64, depth=2, batch_size=4), changes=dict(embed_dim=64, depth=2))

def plain_step(shape, fed, autocast):
    "Forward, backward and AdamW of the plain model on the data of a fed step, its text padded to the end."
    import torch
    from plain_uvit import PlainUViT
    model = PlainUViT(shape['sample_size'], shape['in_channels'], shape['patch_size'], shape['embed_dim'], shape['depth'],
                      shape['num_heads'], shape['text_dim'], shape['max_text_tokens'], shape['num_classes']).to(fed.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    text = torch.nn.functional.pad(fed.text, (0, 0, 0, shape['max_text_tokens'] - fed.text.shape[1]))       # B 256 D
    x = fed.scheduler.add_noise(fed.x0, fed.noise, fed.t)
    def step():
        with torch.autocast(fed.device.type, torch.bfloat16, enabled=autocast):
            loss = torch.nn.functional.mse_loss(model(x, fed.t.float(), fed.labels, text).float(), fed.noise)
        loss.backward(); optimizer.step(); optimizer.zero_grad()
    return step

def largest(make, batch):
    "A job for the largest batch that the memory holds, halved until it does, and that batch: `make(batch)` gives a job."
    import torch
    while True:
        try: job = make(batch); job(); return job, batch
        except torch.OutOfMemoryError:
            if batch == 1: raise
            job = None
        torch.cuda.empty_cache(); batch //= 2

def train_step(device, how, compiled):
    """Images per second of each way, and the share of the device's rate.

    Every way gets the largest batch up to the given one; one way at a time is in memory."""
    import torch
    from vap_diffusion.full_training import Step, matmul, seconds_of, shape_of, step_flops
    from vap_diffusion.prototype import PrototypeUViT
    from vap_diffusion.uvit import UViT
    shape, words, ways = shape_of(how['preset'], **how['changes']), how['words'], {}
    cuda = device == 'cuda'
    def ours(kind, compiled): return lambda batch: Step(shape, device, kind=kind, compiled=compiled).feed(batch, words)
    def plain(autocast): return lambda batch: plain_step(shape, Step(shape, device, kind=UViT).feed(batch, words), autocast)
    makes = dict(plain_float32=plain(False), plain=plain(True), ours_eager=ours(UViT, False), ours=ours(UViT, compiled),
                 ours_with_prototypes=ours(PrototypeUViT, compiled))
    product, work = matmul(device, torch.bfloat16, 8192 if cuda else 256)
    for _ in range(2):  # in turn, twice, so that all ways meet the same machine
        for name, make in makes.items():
            job, batch = largest(make, how['batch'])
            if cuda: torch.cuda.reset_peak_memory_stats()
            # in turn with the product that it is compared with
            seconds, beside = seconds_of(job, product, runs=how['runs'], device=device, warmup=2)
            peak = torch.cuda.max_memory_allocated()/2**30 if cuda else None
            if name not in ways or seconds/batch < ways[name]['seconds']/ways[name]['batch']:
                ways[name] = dict(batch=batch, seconds=seconds, images_per_second=batch/seconds, peak_gb=peak,
                                  rate=work/beside)
            del job
            if cuda: torch.cuda.empty_cache()
    flop = {name: step_flops(shape, ways[name]['batch'], words, kind)
            for name, kind in (('ours', UViT), ('ours_with_prototypes', PrototypeUViT))}
    return {name: f/ways[name]['seconds']/ways[name]['rate'] for name, f in flop.items()}, ways

def whole_way(root, how, minutes, compiled):
    "Prepare, describe, encode, train, paint, judge."
    from vap_diffusion.datasets import load_images, prepare
    from vap_diffusion.metrics import evaluate
    from vap_diffusion.pipeline import build_pipeline, load_samples, sample
    from vap_diffusion.quickstart import adherence_of
    from vap_diffusion.training import encode, log_lines, train
    from vap_diffusion.vaps import describe_table, make_mllm
    work, took, last = root/'w', {}, time.time()
    def note(stage):
        nonlocal last
        took[stage], last = round(time.time() - last, 1), time.time()
        print(f'{stage}: {took[stage]} s', flush=True)
    table = prepare('phantoms', root/'phantoms', work, 'dermoscopy', n=how['phantoms'], size=how['size'], progress=False)
    note('prepare')
    describe_table(work, make_mllm('measure'), progress=False); note('describe')
    encode(work, size=how['size']); note('encode')
    run = train(work, minutes=minutes, compile=compiled, progress=False, **how['train']); note('train')
    sample(build_pipeline(run), root/'samples', how['n'], like=work, progress=False); note('sample')
    images, rows = load_samples(root/'samples')
    test, other = table[table.split == 'test'], table[table.split == 'train']
    n = min(how['n'], len(test), len(other))
    found = evaluate(load_images(test, table.attrs['root'], how['size'], progress=False), images, n=n,
                     floor_real=load_images(other.sample(n, random_state=0), table.attrs['root'], how['size'],
                                            progress=False))
    found['adherence'] = adherence_of(images, rows, table); note('evaluate')
    made, log = json.loads((run/'train.json').read_text()), log_lines(run/'log.jsonl')
    return dict(seconds=took,
                training={k: made[k] for k in ('steps', 'seconds', 'images_seen', 'parameters', 'device')}
                         | {k: log[-1][k] for k in ('loss', 'memory_gb')}
                         | {k: statistics.median(l[k] for l in log[1:] or log)
                            for k in ('images_per_second', 'data_share')},
                figures=found)

def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--minutes', type=float, default=20, help='of training')
    ap.add_argument('--tiny', action='store_true', help='in miniature: shows that it works, on a CPU too, and measures nothing')
    ap.add_argument('--no-compile', action='store_true')
    ap.add_argument('--out', type=Path, help='results/bench-gpu.json when not given; must be given with --tiny')
    a = ap.parse_args(argv)
    import torch
    from vap_diffusion.quickstart import machine
    from vap_diffusion.datasets import write_json
    device, how = 'cuda' if torch.cuda.is_available() else 'cpu', TINY if a.tiny else FULL
    if device == 'cpu' and not a.tiny:
        sys.exit('no GPU here: torch.cuda.is_available() is False; --tiny --out FILE runs it in miniature, '
                 '`make bench` measures a CPU')
    if a.tiny and not a.out: sys.exit('--tiny measures nothing: give --out FILE, so that it is not taken for a result')
    start, rows, compiled = time.time(), [], not a.no_compile
    def row(what, value, target=None, **more):
        met = None if target is None or a.tiny else bool(value >= target)
        rows.append(dict(what=what, value=round(value, 3), target=target, at_least=True, met=met, **more))
        print(f'{what}: {value:.3g}'
              + ('' if met is None else f" (at least {target:g}: {'met' if met else 'MISSED'})"), flush=True)
    share, ways = train_step(device, how, compiled)
    speed = {name: w['images_per_second'] for name, w in ways.items()}
    row("images/s in the train step, paper configuration, bfloat16: ours / the authors' way",
        speed['ours']/speed['plain'], 3, ways=ways)
    row("the same, the authors' way in float32", speed['ours']/speed['plain_float32'])
    row('of this by torch.compile', speed['ours']/speed['ours_eager'])
    row('share of the matmul rate in the train step', share['ours'], .5, matmul_tflops=round(ways['ours']['rate']/1e12, 3))
    row('the same with prototypes', share['ours_with_prototypes'])
    with tempfile.TemporaryDirectory() as root: found = whole_way(Path(root), how, a.minutes, compiled)
    write_json(a.out or ROOT/'results'/'bench-gpu.json',
               dict(rows=rows, tiny=a.tiny, compiled=compiled, batch=how['batch'], minutes=a.minutes, whole_way=found,
                    command='python tests/bench_gpu.py ' + ' '.join(sys.argv[1:] if argv is None else argv),
                    seconds=round(time.time() - start), **machine()))
    if missed := [r['what'] for r in rows if r['met'] is False]: sys.exit('missed: ' + '; '.join(missed))

if __name__ == '__main__': main()
