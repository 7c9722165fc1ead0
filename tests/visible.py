"""Can the judge see what the words say, and does the class say it already? `python tests/visible.py W FEATURES --out results/visible.json`.

For each attribute that the descriptions name, balanced accuracy on held-out images (test split; 1 / number of values is chance) of two
readers fitted on the training images: a linear one (ridge) on the judge's features, and the commonest value of the image's class. Words
can lower FID by what the first sees and the second does not. Several data sets may write into one file."""
import argparse, json, shlex, sys, time
from pathlib import Path
import numpy as np

def balanced(said, truth): return float(np.mean([np.mean(said[truth == v] == v) for v in np.unique(truth)]))

def probe(x, y, x_test, classes, ridge=1.):
    "Balanced ridge regression on one-hot values: features N F -> the likeliest value."
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = ((np.c_[(a - mean)/std, np.ones(len(a))]) for a in (x, x_test))
    weight = 1/np.maximum(1, np.array([np.sum(y == v) for v in classes]))[np.searchsorted(classes, y)]
    weight = weight/weight.mean()
    w = np.linalg.solve(x.T @ (x*weight[:, None]) + ridge*np.eye(x.shape[1]), x.T @ ((y[:, None] == classes)*weight[:, None]))
    return classes[(x_test @ w).argmax(1)]

def main(argv=None):
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('work', type=Path); ap.add_argument('features'); ap.add_argument('--out', type=Path, required=True)
    a = ap.parse_args(argv)
    from vap_diffusion.datasets import load_images, load_table
    from vap_diffusion.metrics import as_bytes, extract, features_name, load_judge
    from vap_diffusion.quickstart import machine
    from vap_diffusion.datasets import write_json
    from vap_diffusion.vaps import load_descriptions, read_attributes
    start, table, net = time.time(), load_table(a.work), load_judge(a.features)
    words, modality = load_descriptions(a.work).set_index('file_name').t_mix, table.modality.mode()[0]
    parts = [table[table.split == s] for s in ('train', 'test')]
    seen = [extract(net, as_bytes(load_images(t, table.attrs['root'], 64), 'images')).double().cpu().numpy() for t in parts]
    said = [[read_attributes(words[f], modality) for f in t.file_name] for t in parts]
    rows = {}
    for name in sorted({k for s in said[0] for k in s}):
        y, y_test = (np.array([str(s.get(name, '')) for s in of]) for of in said)
        values = np.array(sorted(v for v in set(y) if v and (y == v).sum() >= 20 and (y_test == v).sum() >= 5))
        if len(values) < 2: continue
        keep, keep_test = np.isin(y, values), np.isin(y_test, values)
        labels, labels_test = parts[0].label.to_numpy()[keep], parts[1].label.to_numpy()[keep_test]
        counts = {v: (y[keep] == v).sum() for v in values}                    # values weigh alike, as in the accuracy
        commonest = {l: max(values, key=lambda v: ((y[keep] == v) & (labels == l)).sum()/counts[v]) for l in set(labels)}
        rows[name] = dict(values=len(values), n=int(keep_test.sum()), chance=1/len(values),
                          features=balanced(probe(seen[0][keep], y[keep], seen[1][keep_test], values), y_test[keep_test]),
                          label=balanced(np.array([commonest.get(l, values[0]) for l in labels_test]), y_test[keep_test]))
        print(f"{name}: {len(values)} values, features {rows[name]['features']:.2f}, "
              f"class {rows[name]['label']:.2f}, chance {rows[name]['chance']:.2f}", flush=True)
    found = json.loads(a.out.read_text()) if a.out.exists() else {}
    found[table.attrs['dataset']] = dict(
        attributes=rows, features=features_name(net), words='the measuring describer',
        command=f'python tests/visible.py {shlex.join(sys.argv[1:] if argv is None else argv)}',
        seconds=round(time.time() - start), **machine())
    write_json(a.out, found)

if __name__ == '__main__': main()
