"""Speed, side by side in one process, alternating, medians: `make bench` writes results/bench.json and fails when a target is missed.

The reference of the train step is `plain_uvit.py` (dense 256 padded text tokens, attention in float32); its data are already encoded,
as ours are, so that only the step is compared. Descriptions have 40 to 100 tokens. Sampling is compared at equal quality (FID within
2 %, recall within .03, which is one and a half standard errors), which results/sampling_study.json must show: 50 steps with two passes each
against the pipeline's default. Two rows are read from files
that other commands wrote, and say so."""
import argparse, json, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def alternate(runs, **jobs):
    "Median seconds of each job, by name: all of them in turn, after a round that does not count."
    from vap_diffusion.full_training import seconds_of
    return dict(zip(jobs, seconds_of(*jobs.values(), runs=runs)))

def train_step(batch=4, runs=3):
    "Forward, backward and AdamW of the paper's configuration."
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from plain_uvit import PlainUViT
    from vap_diffusion.full_training import CPU_ATTENTION, matmul
    from vap_diffusion.prototype import PrototypeUViT, vap_loss
    from vap_diffusion.uvit import UViT
    torch.manual_seed(0)
    shape = dict(sample_size=32, in_channels=4, patch_size=2, embed_dim=512, depth=16, num_heads=8,
                 text_dim=768, max_text_tokens=256, num_classes=7)
    x, noise, t, c = (torch.randn(batch, 4, 32, 32), torch.randn(batch, 4, 32, 32),
                      torch.randint(0, 1000, (batch,)), torch.randint(0, 7, (batch,)))
    lengths = torch.linspace(40, 100, batch).long()
    mask = torch.arange(256)[None] < lengths[:, None]
    text = torch.randn(batch, 256, 768)*mask[..., None]
    def stepper(model, call, autocast):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        def step():
            with torch.autocast('cpu', torch.bfloat16, enabled=autocast): loss = call(model)
            loss.backward(); optimizer.step(); optimizer.zero_grad()
        return step
    ours = lambda m: vap_loss(m(x, t, c, text[:, :lengths.max()], mask[:, :lengths.max()]), noise)
    plain = lambda m: torch.nn.functional.mse_loss(m(x, t.float(), c, text), noise)
    step = stepper(UViT(**shape), ours, False)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counted: step()
    product, work = matmul()
    found = alternate(runs, product=product, plain=stepper(PlainUViT(), plain, False), ours=step,
                      ours_bf16=stepper(UViT(**shape), ours, True),
                      ours_with_prototypes=stepper(PrototypeUViT(**shape), ours, False),
                      ours_with_prototypes_bf16=stepper(PrototypeUViT(**shape), ours, True))
    return found | dict(flop=counted.get_total_flops(), rate=work/found['product'])

def sampling(study, n=32, runs=3):
    "Images per second of the course model: 50 steps with two passes, and the default, which the study must show to be as good."
    import inspect, torch
    from diffusers import DPMSolverMultistepScheduler
    from vap_diffusion.pipeline import VAPDiffusionPipeline, load_pipeline
    pipe, ask = load_pipeline('course'), inspect.signature(VAPDiffusionPipeline.__call__).parameters
    def paint(r):
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_lu_lambdas='SNR' in r['spacing'])
        pipe(['nevus', 'melanoma', 'keratosis', 'nevus']*(n//4),
             ['Oval brown lesion, a fifth of the image, soft border, smooth texture, centre; pink skin, normal light.']*n,
             r['steps'], 2., guidance_interval=tuple(r['interval']),
             generator=[torch.Generator().manual_seed(i) for i in range(n)], output_type='uint8')
    for model in ('five minutes', 'course'):                                                    # the last one is timed
        rows = [r for r in study['rows'] if r['model'] == model]
        reference = max(rows, key=lambda r: r['evaluations'])
        default, = (r for r in rows if 'SNR' in r['spacing'] and (r['steps'], tuple(r['interval']))
                    == (ask['num_inference_steps'].default, ask['guidance_interval'].default))
        if default['fid'] > reference['fid']*1.02 or default['recall'] < reference['recall'] - .03:
            sys.exit(f'results/sampling_study.json: the default is worse than 50 steps with two passes, model {model}')
    took, keys = (alternate(runs, reference=lambda: paint(reference), default=lambda: paint(default)),
                  ('steps', 'spacing', 'interval', 'evaluations', 'fid', 'recall'))
    return dict(reference={k: reference[k] for k in keys}, default={k: default[k] for k in keys},
                images_per_second={k: round(n/s, 2) for k, s in took.items()}, ratio=took['reference']/took['default'])

def compiled(n=32, runs=3):
    "What `torch.compile`, block by block, brings to painting here, and the seconds it takes first."
    import torch
    from vap_diffusion.pipeline import load_pipeline
    def painter(compiled):
        pipe = load_pipeline('course')
        if compiled:
            for block in (*pipe.uvit.in_blocks, pipe.uvit.mid_block, *pipe.uvit.out_blocks): block.compile(dynamic=True)
        return lambda: pipe(['nevus']*n, generator=[torch.Generator().manual_seed(i) for i in range(n)], output_type='uint8')
    first, ours = painter(True), painter(False)
    start = time.perf_counter(); first(); seconds = time.perf_counter() - start
    took = alternate(runs, eager=ours, compiled=first)
    return dict(ratio=took['eager']/took['compiled'], seconds_first=round(seconds, 1),
                images_per_second={k: round(n/s, 2) for k, s in took.items()})

def first_picture(runs=3):
    "`sample course --n 1` in a cold process, and importing what it needs of torch and diffusers in the same way, in turn."
    def whole():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, '-m', 'vap_diffusion.cli',
                            'sample', 'course', '--n', '1', '--out', f'{folder}/s'], check=True, capture_output=True)
    def imports():
        subprocess.run([sys.executable, '-c',
                        'import atexit, gc; gc.set_threshold(10_000); atexit.register(gc.freeze); import torch; '
                        'from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler'],
                       check=True, capture_output=True)
    return alternate(runs, whole=whole, imports=imports)

def data_share(root):
    "Share of a training that waits for its batches, by its own log (cpu preset)."
    from train_kills import folder_with_features
    from vap_diffusion.training import log_lines, train
    work = folder_with_features(Path(root), 200)
    lines = log_lines(train(work, steps=120, progress=False)/'log.jsonl')
    return statistics.mean(l['data_share'] for l in lines[2:])

def quickstart_rows(row):
    "The same quickstart at an early commit and now, one after the other on one machine: same seed, same N."
    pair = json.loads((ROOT/'results'/'quickstart-pair.json').read_text())
    ratio, said = (lambda r: r['class+text']['fid']/r['class']['fid'],
                   'N = {n}, seed {seed} (results/quickstart-pair.json); target: commit {before[commit]}'.format(**pair))
    row(f'FID ratio of `quickstart`, {said}', ratio(pair['now']), round(ratio(pair['before']), 3), False)
    row('its minutes, the whole command', pair['now']['seconds']/60, round(pair['before']['seconds']/60, 1), False)

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--runs', type=int, default=3)
    ap.add_argument('--out', type=Path, default=ROOT/'results'/'bench.json')
    ap.add_argument('--quickstart', action='store_true', help='only put the rows about quickstart into the file anew')
    a = ap.parse_args()
    from vap_diffusion.quickstart import machine
    from vap_diffusion.datasets import write_json
    start, rows = time.time(), []
    def row(what, value, target=None, at_least=True, **more):
        met = None if target is None else bool(value >= target if at_least else value <= target)
        rows.append(dict(what=what, value=round(value, 3), target=target, at_least=at_least, met=met, **more))
        print(f"{what}: {value:.3g}"
              + ('' if target is None else
                 f" ({'at least' if at_least else 'at most'} {target:g}: {'met' if met else 'MISSED'})"), flush=True)
    if a.quickstart:
        found = json.loads(a.out.read_text()); quickstart_rows(row)
        kept = [r for r in found['rows'] if 'quickstart' not in r['what'] and not r['what'].startswith('its minutes')]
        at = next(i for i, r in enumerate(kept) if 'sample course' in r['what'])
        return write_json(a.out, found | dict(rows=kept[:at] + rows + kept[at:]))
    s = train_step(runs=a.runs)
    seconds = {k: round(v, 3) for k, v in s.items() if k not in ('flop', 'rate')}
    row('train step, paper configuration, batch 4, float32: plain / ours', s['plain']/s['ours'], 1.45, seconds=seconds)
    row('train step: plain float32 / ours bfloat16', s['plain']/s['ours_bf16'], 2.5)
    row('the same two with prototypes: float32', s['plain']/s['ours_with_prototypes'])
    row('with prototypes: bfloat16', s['plain']/s['ours_with_prototypes_bf16'])
    row('share of the matmul rate in the train step', s['flop']/s['ours']/s['rate'], .6, matmul_gflops=round(s['rate']/1e9, 1))
    found = sampling(json.loads((ROOT/'results'/'sampling_study.json').read_text()), runs=a.runs)
    row('images/s in sampling at equal FID: ours / 50 steps with two passes', found.pop('ratio'), 4, **found)
    try:
        found = compiled(runs=a.runs)
        row('images/s in sampling: compiled blocks / not compiled, which is the default', found.pop('ratio'), **found)
    except Exception as e:
        print(f'torch.compile does not work here ({type(e).__name__}): '
              'a C++ compiler and the headers of Python are needed')
    with tempfile.TemporaryDirectory() as root:
        row('share of a training step that waits for data', data_share(root), .02, False)
    memory = json.loads((ROOT/'results'/'metrics_memory.json').read_text())
    row('working memory of precision and recall beside the features, 20k x 20k x 2048: ours / dense '
        '(results/metrics_memory.json)', memory['share']['dense']['working'], .1, False)
    row('the same with the features, which both hold: ours / dense', memory['share']['dense']['with_features'])
    row('the same with the features: ours / dense in float64, as exact', memory['share']['dense64']['with_features'], .1, False)
    quickstart_rows(row)
    first = first_picture()
    row('seconds of `sample course --n 1`, cold', first['whole'], 6, False)
    row('of these beside importing torch and diffusers', first['whole'] - first['imports'], 2, False)
    write_json(a.out, dict(rows=rows, runs=a.runs, command='make bench', seconds=round(time.time() - start), **machine()))
    if missed := [r['what'] for r in rows if r['met'] is False]: sys.exit('missed: ' + '; '.join(missed))

if __name__ == '__main__': main()
