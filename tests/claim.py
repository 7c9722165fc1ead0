"""The paper's claim under one protocol: U-ViT on the class alone, + descriptions, + prototypes; on any prepared data set.

`python tests/claim.py W --out results/claim-phantoms.json` with a folder W that `prepare`, `describe` and `encode` filled.
All methods get the same images, latents, batches, noise and *steps*; a longer class-only training has as many processor *seconds*
as the whole model. Judged on held-out images: prompts drawn from the bank, the images' own, and recombined ones that
training never had. The seeds of a method train side by side. Goes on where it stopped; the file is written after each method."""
import argparse, json, shlex, sys, time
from pathlib import Path
from vap_diffusion.datasets import load_table
from vap_diffusion.pipeline import build_pipeline, sample
from vap_diffusion.quickstart import draw_samples, judge, machine, shown_images
from vap_diffusion.training import load_features, train_together, write_json

METHODS = {'class': dict(text=False), 'class, as many seconds': dict(text=False), 'class + text': dict(prototypes=False), 'class + text + prototypes': {}}
PROMPTS = ('bank', 'own', 'unseen')

def name_of(method, seed): return f"{method.replace(' + ', '-').replace(', ', '-').replace(' ', '-')}-s{seed}"

def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('work', type=Path, help='the working folder, encoded')
    ap.add_argument('--out', type=Path, required=True, help='the file of results')
    ap.add_argument('--grid', type=Path, help='a picture of the painted images (no real ones) by class, both kinds of model')
    ap.add_argument('--features', default='phantoms', help='the judge: a name or folder')
    ap.add_argument('--preset', default='cpu')
    ap.add_argument('--steps', type=int, default=6000)
    ap.add_argument('--n', type=int, default=1500, help='painted images of each kind; at most those of the split')
    ap.add_argument('--split', default='test')
    ap.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    ap.add_argument('--guidance', type=float, default=2)
    a = ap.parse_args(argv)
    start, w, table = time.time(), a.work, load_table(a.work)
    record, n = load_features(w).record, min(a.n, int((table.split == a.split).sum()))
    earlier = json.loads(a.out.read_text()) if a.out.exists() else {}
    facts = dict(command=f'python tests/claim.py {shlex.join(sys.argv[1:] if argv is None else argv)}', dataset=table.attrs['dataset'], images=int((table.split == 'train').sum()), split=a.split, n=n, steps=a.steps, guidance=a.guidance, size=record['size'])
    runs, figures = {}, earlier.get('figures', {})
    def made(method, seed): return json.loads((runs[method][a.seeds.index(seed)]/'train.json').read_text())
    for method in ('class', 'class + text + prototypes', 'class + text', 'class, as many seconds'):
        steps = a.steps
        if 'seconds' in method: steps = round(a.steps*sum(made('class + text + prototypes', s)['cpu_seconds'] for s in a.seeds)/sum(made('class', s)['cpu_seconds'] for s in a.seeds), -2)
        runs[method] = train_together([dict(out=w, steps=int(steps), preset=a.preset, seed=s, name=name_of(method, s)) | METHODS[method] for s in a.seeds])
        for seed, run in zip(a.seeds, runs[method]):
            key = f'{method} | {seed}'
            if key in figures: continue
            pipe, sets = build_pipeline(run), {}
            for kind in PROMPTS if pipe.config.uses_text else PROMPTS[:1]:
                sets[kind] = w/'claim'/f'{run.name}-{kind}-{a.split}'
                sample(pipe, sets[kind], n, like=w, split=a.split, prompts=kind, seed=seed, guidance_scale=a.guidance)
            found = judge(sets, {'class': pipe}, table, record['size'], a.split, n, a.features, seed)
            budget = {k: made(method, seed)[k] for k in ('steps', 'images_seen', 'seconds', 'cpu_seconds', 'parameters')}
            figures[key] = dict(method=method, seed=seed, **budget, prompts={k: found[k] for k in sets}, reconstruction=found['reconstruction'])
            print(key, {k: {f: round(found[k][f], 3) for f in ('fid', 'recall', 'precision')} for k in sets}, flush=True)
            write_json(a.out, facts | dict(seconds=round(earlier.get('seconds', 0) + time.time() - start), figures=figures, **machine()))
    if a.grid:
        pipes = {'class': build_pipeline(runs['class'][0]), 'class+text': build_pipeline(runs['class + text + prototypes'][0])}
        draw_samples(shown_images(pipes, w, table, record['size'], a.split, 4, a.seeds[0], a.guidance), a.grid, real=table.attrs['dataset'] == 'phantoms')

if __name__ == '__main__': main()
