"""Quality against network evaluations: `python tests/sampling_study.py` writes results/sampling_study.json (chapter 12 draws it).

The course model paints held-out dermoscopy phantoms from their own descriptions, for several numbers of steps, spacings
of them and guidance intervals; each set is judged as in chapter 13. So does a model of `make quickstart`, five minutes
old: the course model is at the floor whatever the setting, and what is at the floor cannot be told apart. Goes on where
it stopped. An evaluation is one pass of one image through the network."""
import argparse, time
from pathlib import Path

PLAIN, SNR = 'evenly in t', 'evenly in log SNR'
# steps, guided where t / T lies here, spacing of the steps
SETTINGS = [(50, (0., 1.), PLAIN), (20, (0., 1.), PLAIN), (20, (0., 1.), SNR), (16, (0., .6), SNR), (12, (0., 1.), SNR),
            (12, (0., .6), SNR), (12, (.2, .8), SNR), (12, (.4, 1.), SNR), (10, (0., 1.), SNR), (10, (0., .6), SNR),
            (10, (.1, 1.), SNR), (10, (.2, 1.), SNR), (8, (0., 1.), SNR), (8, (.1, 1.), SNR), (8, (0., .6), SNR),
            (6, (0., 1.), SNR), (6, (0., .6), SNR)]

def evaluations(pipe, steps, interval):
    "Network evaluations for one image."
    pipe.scheduler.set_timesteps(steps)
    share = pipe.scheduler.timesteps/pipe.scheduler.config.num_train_timesteps
    return steps + int(((share >= interval[0]) & (share <= interval[1])).sum())

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--work', type=Path, default=Path('runs/sampling_study'))
    ap.add_argument('--brief', type=Path, default=Path('runs/quickstart/models/vap/pipeline'), help='the pipeline of the quickstart')
    ap.add_argument('--n', type=int, default=500, help='images of each set')
    ap.add_argument('--guidance', type=float, default=2)
    ap.add_argument('--seed', type=int, default=7)
    ap.add_argument('--out', type=Path, default=Path('results/sampling_study.json'))
    a = ap.parse_args()
    from diffusers import DPMSolverMultistepScheduler
    from vap_diffusion.datasets import load_images, prepare
    from vap_diffusion.metrics import evaluate
    from vap_diffusion.pipeline import load_pipeline, load_samples, sample
    from vap_diffusion.quickstart import adherence_of, machine
    from vap_diffusion.datasets import write_json
    from vap_diffusion.vaps import describe_table
    start, w = time.time(), a.work
    table = prepare('phantoms', w/'phantoms', w, n=int(2.5*a.n) + 10, size=64, seed=a.seed, modality='dermoscopy')
    describe_table(w)
    fresh = table[table.split == 'train']                                        # phantoms of another seed: the model has seen none of them
    mine = fresh.sample(a.n, random_state=a.seed)                                # as `sample(prompts='own')` takes them
    real, floor = (load_images(t, table.attrs['root'], 64, progress=False) for t in (mine, fresh.drop(mine.index).head(a.n)))
    rows = []
    for model, source in ('course', 'course'), ('five minutes', a.brief):
        pipe = load_pipeline(source)
        for steps, interval, spacing in SETTINGS:
            out = w/model.replace(' ', '-')/f'{steps}-{interval[0]:g}-{interval[1]:g}-{spacing.replace(" ", "-")}'
            pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_lu_lambdas=spacing == SNR)
            sample(pipe, out, a.n, prompts='own', like=w, split='train', seed=a.seed, num_inference_steps=steps,
                   guidance_scale=a.guidance, guidance_interval=interval)
            images, manifest = load_samples(out)
            found = evaluate(real, images, n=a.n, seed=a.seed, floor_real=floor)
            rows.append(dict(model=model, steps=steps, interval=interval, spacing=spacing,
                             evaluations=evaluations(pipe, steps, interval),
                             **{k: found[k] for k in ('fid', 'kid', 'precision', 'recall', 'fid_floor', 'recall_floor')},
                             adherence=adherence_of(images, manifest, table)['mean']))
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    write_json(a.out, dict(rows=rows, n=a.n, guidance=a.guidance, seed=a.seed, features=found['features'],
                           command='python tests/sampling_study.py', seconds=round(time.time() - start), **machine()))

if __name__ == '__main__': main()
