"""What does a wrong word cost? Train the generator on descriptions with planted errors, on verified ones, and on those
of a describer, each for the same number of steps.

    python tests/hallucination_cost.py --out runs/cost                    # planted errors, verified banks, the measuring describer
    python tests/hallucination_cost.py --out runs/cost --mllm hf:FOLDER   # its three variants of VAPS, as they are and verified

All on dermoscopy phantoms, whose truth is known. Stopped and called again it goes on; every finished arm is in
results/hallucination_cost.json (or --results).
"""
import argparse, json, re, shutil, sys, time
from pathlib import Path
import numpy as np
from tqdm import tqdm
from vap_diffusion.datasets import load_image, load_images, prepare, write_json
from vap_diffusion.faithfulness import ask, faithfulness_report, plant_errors, read_claims, say, spoken, verify
from vap_diffusion.metrics import agreement, evaluate
from vap_diffusion.phantoms import ATTRIBUTES
from vap_diffusion.pipeline import build_pipeline, load_samples, sample
from vap_diffusion.quickstart import machine
from vap_diffusion.training import encode, train
from vap_diffusion.vaps import MeasuringDescriber, make_mllm, questions, user

ROOT, MODALITY, RATES = Path(__file__).resolve().parent.parent, 'dermoscopy', (0, .1, .2, .4)
VARIANTS = {'t1': (1,), 't_mix 1+3': (1, 3), 't_mix 1+2+3': (1, 2, 3)}

def planted(truth, rate, seed):
    "Sentences in which each attribute is contradicted or hallucinated at this rate."
    rng = np.random.default_rng([seed, 6])
    wrong, false = (plant_errors(truth, MODALITY, kind, rate, rng, denials=False)[0] for kind in ('contradicted', 'hallucinated'))
    return [say(MODALITY, w | {a: v for a, v in f.items() if t[a] == 'none'}) for w, f, t in zip(wrong, false, truth)]

def first_impression(truth):
    "The truth in the words of the measuring describer's t1."
    return ['Observed: ' + '; '.join(f'{a} {v}' for a, v in t.items()) + '.' for t in truth]

def cached(path, make):
    "A list of texts or dicts, made once."
    if not path.exists(): path.parent.mkdir(parents=True, exist_ok=True); write_json(path, make())
    return json.loads(path.read_text())

def say_all(mllm, files, steps, path, n=None):
    "What a model says of every image after some steps, kept line by line: a stop loses one answer."
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    path.write_text(''.join(l + '\n' for l in lines))
    t2 = mllm.chat([user(questions(MODALITY)[1])]) if 2 in steps else ''
    with open(path, 'a') as out:
        for f in tqdm(files[len(lines):n], desc=f'{mllm.name}, steps {steps}', mininterval=10):
            out.write(json.dumps(ask(mllm, load_image(f), MODALITY, steps, t2)) + '\n'); out.flush()
    return [json.loads(l) for l in path.read_text().splitlines()][:n]

def write_words(folder, base, table, words, name):
    "A working folder that has the images of `base` and these words."
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder/'table.parquet').exists(): shutil.copy(base/'table.parquet', folder)
    lines = [json.dumps(dict(file_name=f, label=l, t1='', t2='', t_mix=w, model=name, prompt_version='planted')) + '\n'
             for f, l, w in zip(table.file_name, table.label, words)]
    (folder/'descriptions.jsonl').write_text(''.join(lines))

def read_back(images, wanted, rng):
    "Agreement of what is measured in images with what was asked for, and with what was asked of others."
    read = [MeasuringDescriber().measure(i, MODALITY) for i in images]
    score = agreement(wanted, read)
    others = [np.mean(list(agreement([wanted[i] for i in rng.permutation(len(wanted))], read).values())) for _ in range(20)]
    return dict(mean=float(np.mean(list(score.values()))), chance=float(np.mean(others)), attributes=score)

def run_arm(a, base, table, truth, name, words, own):
    "Train, sample and judge one arm; `own` is the folder whose descriptions are the true prompts."
    folder, began, text = a.out/f'{name}-seed{a.seed}'.replace(' ', '-').replace('%', ''), time.time(), name != 'class only'
    write_words(folder, base, table, words, name)
    record = encode(folder, seed=0)
    run = train(folder, text=text, steps=a.steps, preset='cpu', seed=a.seed, save_every=60, progress=False)
    pipe, n = build_pipeline(run), min(a.n, int((table.split == 'test').sum()))
    test, rest = (table[table.split == 'test'].sample(n, random_state=0),
                  table[table.split == 'train'].sample(n, random_state=0))
    real, floor = (load_images(t, table.attrs['root'], record['size'], progress=False) for t in (test, rest))
    found, rng = {}, np.random.default_rng(0)
    for prompts, like in (('bank', folder), ('own', own)):
        sample(pipe, folder/f'samples-{prompts}', n, like=like, split='test', prompts=prompts, seed=a.seed, progress=False)
        images, manifest = load_samples(folder/f'samples-{prompts}')
        scores = evaluate(real, images, n=n, floor_real=floor, seed=0)
        found[prompts] = {k: scores[k] for k in ('fid', 'fid_floor', 'kid', 'kid_floor', 'precision', 'recall',
                                                 'recall_floor', 'n', 'features')}
        if text:
            found[prompts]['adherence'] = read_back(
                images, [{k: v[0] for k, v in read_claims(p, MODALITY).items()} for p in manifest.prompt], rng)
    report = faithfulness_report([read_claims(w, MODALITY) for w in words], truth, MODALITY) if text else None
    words_are = {} if report is None else {r.measure: r.rate for r in report[report.attribute == 'all'].itertuples()}
    made = json.loads((run/'train.json').read_text())
    for part in ('samples-bank', 'samples-own', 'features'): shutil.rmtree(folder/part)                # a gigabyte less; the model stays
    return dict(arm=name, seed=a.seed, words=words_are, example=words[0] if text else '', **found,
                steps=made['steps'], train_seconds=made['seconds'], seconds=round(time.time() - began, 1))

def arms(a, table, truth, base):
    "Name and words of each arm, in the order in which they are trained. Words are made when their turn comes."
    files = [Path(table.attrs['root'])/f for f in table.file_name]
    evidence = lambda: cached(base/f'evidence-{MeasuringDescriber.name}.json',
                              lambda: [MeasuringDescriber().measure(load_image(f), MODALITY)
                                       for f in tqdm(files, desc='measuring', mininterval=10)])
    checked = lambda words, mode: [verify(w, e, MODALITY, mode) or w for w, e in zip(words, evidence())]
    name = a.mllm or 'measure'
    mllm = make_mllm(name)
    # with its number: another describer has other words
    safe = re.sub(r'\W+', '-', mllm.name)
    said = lambda steps, n=None: say_all(mllm, files, steps, base/f'{safe}-{"".join(map(str, steps))}.jsonl', n)
    if not a.mllm:
        for rate in RATES: yield f'planted {rate:.0%}', lambda rate=rate: planted(truth, rate, a.seed)
        for mode in ('drop', 'repair'): yield f'planted 40% {mode}', lambda mode=mode: checked(planted(truth, .4, a.seed), mode)
        yield 'class only', lambda: planted(truth, 0, a.seed)
    same = said((1, 3), 200) == said((1, 2, 3), 200)
    for variant, steps in VARIANTS.items():
        if steps == (1, 3) and same: continue                                                          # the same words: not trained twice
        yield f'{name} {variant}', lambda steps=steps: said(steps)
    if a.mllm:
        for mode in ('drop', 'repair'): yield f'{name} t_mix 1+2+3 {mode}', lambda mode=mode: checked(said((1, 2, 3)), mode)

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', type=Path, default=Path('runs/cost'))
    ap.add_argument('--results', type=Path, default=ROOT/'results'/'hallucination_cost.json')
    ap.add_argument('--mllm', default='', help='a model as for `vap-diffusion describe`: only its arms are trained')
    ap.add_argument('--images', type=int, default=5000, help='phantoms; eight tenths are trained on')
    ap.add_argument('--steps', type=int, default=3000)
    ap.add_argument('--n', type=int, default=500, help='images to paint and to judge')
    ap.add_argument('--seed', type=int, default=0, help='of errors, weights and noise')
    ap.add_argument('--only', default='', help='arms whose name contains this')
    a = ap.parse_args()
    base = a.out/'base'
    table = prepare('phantoms', a.out/'phantoms', base, MODALITY, n=a.images, size=64, progress=False)
    truth = table[list(ATTRIBUTES[MODALITY])].to_dict('records')
    write_words(base/'true', base, table, [say(MODALITY, spoken(MODALITY, t)) for t in truth], 'truth')
    write_words(base/'true-t1', base, table, first_impression(truth), 'truth')
    facts = dict(modality=MODALITY, images=a.images, train=int((table.split == 'train').sum()), steps=a.steps, batch=16, n=a.n)
    results = (json.loads(a.results.read_text()) if a.results.exists() else
               facts | dict(command='python tests/hallucination_cost.py', describer_name=MeasuringDescriber.name, arms=[]))
    if odd := [k for k in facts if results[k] != facts[k]]:
        sys.exit(f'{a.results} holds results with another {odd[0]} '
                 f'({results[odd[0]]}, not {facts[odd[0]]}): give --results another name')
    if (there := results.get('describer_name', 'measure-1')) != MeasuringDescriber.name:
        sys.exit(f'{a.results} holds results with describer {there}, not {MeasuringDescriber.name}: '
                 'give --results another name')
    for name, words in arms(a, table, truth, base):
        if a.only not in name or any((r['arm'], r['seed']) == (name, a.seed) for r in results['arms']): continue
        print(time.strftime('%H:%M'), name, flush=True)
        results['arms'].append(run_arm(a, base, table, truth, name, words(),
                                       base/('true-t1' if name == 'measure t1' else 'true')))
        results |= dict(seconds=round(sum(r['seconds'] for r in results['arms'])), **machine())
        write_json(a.results, results)
        bank, own = (results['arms'][-1][k] for k in ('bank', 'own'))
        print(f"  FID {bank['fid']:.1f} (own prompts {own['fid']:.1f}), recall {bank['recall']:.2f}, "
              f"adherence {own.get('adherence', {}).get('mean', float('nan')):.3f}, "
              f"{results['arms'][-1]['seconds']:.0f} s", flush=True)
    if not a.mllm and 'describer' not in results:
        test = table[table.split == 'test']
        rows, rng = test.sample(min(a.n, len(test)), random_state=0), np.random.default_rng(0)
        images = load_images(rows, table.attrs['root'], 64, progress=False)
        results['describer'] = read_back(images, rows[list(ATTRIBUTES[MODALITY])].to_dict('records'), rng)
        results['same_t_mix'] = (base/f'{MeasuringDescriber.name}-13.jsonl').read_text() == ''.join(
            l + '\n' for l in (base/f'{MeasuringDescriber.name}-123.jsonl').read_text().splitlines()[:200])
        write_json(a.results, results)

if __name__ == '__main__': main()
