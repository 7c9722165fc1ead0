"""The authors' released model, a second time: plain functions of a dict of tensors, in float64, from a description in words.

It shares nothing with chapter 10 but that description, and is slow on purpose: loops over images and heads, softmax spelled out.
"""
import math
import torch

def shapes(side, channels, patch, width, pairs, words, word_width, classes, ratio=4):
    "Names and shapes of the file. `classes` counts the empty one; `pairs` is the number of blocks before the middle, and after it."
    n, k = (side//patch)**2, 2*(side//patch)**2
    table = {'pos_embed': (1, 1 + words + n, width),
             'patch_embed.proj.weight': (width, channels, patch, patch), 'patch_embed.proj.bias': (width,),
             'context_embed.weight': (width, word_width), 'context_embed.bias': (width,), 'prototype.weight': (classes, k*width),
             'norm.weight': (width,), 'norm.bias': (width,),
             'decoder_pred.weight': (patch*patch*channels, width), 'decoder_pred.bias': (patch*patch*channels,),
             'final_layer.weight': (channels, channels, 3, 3), 'final_layer.bias': (channels,)}
    for letter in 'qkv': table |= {f'{letter}.weight': (width, width), f'{letter}.bias': (width,)}
    def mlp(at):
        return {f'{at}.mlp.fc1.weight': (ratio*width, width), f'{at}.mlp.fc1.bias': (ratio*width,),
                f'{at}.mlp.fc2.weight': (width, ratio*width), f'{at}.mlp.fc2.bias': (width,)}
    def norm(at): return {f'{at}.weight': (width,), f'{at}.bias': (width,)}
    for at in [f'in_blocks.{i}' for i in range(pairs)] + ['mid_block'] + [f'out_blocks.{i}' for i in range(pairs)]:
        table |= norm(f'{at}.norm1') | norm(f'{at}.norm2') | mlp(at) | {
            f'{at}.attn.qkv.weight': (3*width, width), f'{at}.attn.proj.weight': (width, width),
            f'{at}.attn.proj.bias': (width,)}
        if at.startswith('out'): table |= {f'{at}.skip_linear.weight': (width, 2*width), f'{at}.skip_linear.bias': (width,)}
    table |= norm('Q_former.norm1') | norm('Q_former.norm2') | norm('Q_former.normp') | mlp('Q_former') | {
        'Q_former.attn.proj.weight': (width, width), 'Q_former.attn.proj.bias': (width,)}
    for name in ('attn.ql', 'attn.kl', 'attn.vl', 'z1', 'z2'): table[f'Q_former.{name}.weight'] = (width, width)
    return table

def random_state(seed=0, **sizes):
    "A file full of random numbers, large enough that every part matters."
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g)*(1. if 'prototype' in name else 0.3)
                  + (1. if name.split('.')[-2].startswith('norm') and name.endswith('weight') else 0.) if '.' in name
                  else torch.randn(shape, generator=g)
            for name, shape in shapes(**sizes).items()}

def run(state, image, time, label, words, heads):
    "One image: C H W, a number, a class, words x width -> predicted noise C H W, loss."
    W = {k: v.double() for k, v in state.items()}
    image, words = image.double(), words.double()
    def affine(x, name):
        y = torch.einsum('ti,oi->to', x, W[name + '.weight'])
        return y + W[name + '.bias'] if name + '.bias' in W else y
    def normalise(x, name):
        centred = x - x.mean(1, keepdim=True)
        return centred/torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5)*W[name + '.weight'] + W[name + '.bias']
    def attention(q, k, v):
        d, out = q.shape[1]//heads, []
        for h in range(heads):
            a, b, c = (m[:, h*d:(h + 1)*d] for m in (q, k, v))
            e = torch.exp(a @ b.T/math.sqrt(d)); out.append((e/e.sum(1, keepdim=True)) @ c)
        return torch.cat(out, 1)
    def mlp(x, at):
        h = affine(x, at + '.mlp.fc1')
        return affine(h*0.5*(1 + torch.erf(h/math.sqrt(2))), at + '.mlp.fc2')
    def block(x, at):
        width = x.shape[1]
        qkv = affine(normalise(x, at + '.norm1'), at + '.attn.qkv')
        x = x + affine(attention(qkv[:, :width], qkv[:, width:2*width], qkv[:, 2*width:]), at + '.attn.proj')
        return x + mlp(normalise(x, at + '.norm2'), at)

    width, channels, p, _ = W['patch_embed.proj.weight'].shape
    side = image.shape[1]//p
    angles = [time*10000**(-i/(width//2)) for i in range(width//2)]
    rows = [torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)]
    rows += list(affine(words, 'context_embed'))
    for i in range(side):
        for j in range(side):
            rows.append((W['patch_embed.proj.weight']*image[:, i*p:(i + 1)*p, j*p:(j + 1)*p]).sum((1, 2, 3))
                        + W['patch_embed.proj.bias'])
    x = torch.stack(rows) + W['pos_embed'][0]
    kept = []
    pairs = len({n.split('.')[1] for n in W if n.startswith('in_blocks')})
    for i in range(pairs): x = block(x, f'in_blocks.{i}'); kept.append(x)
    x = block(x, 'mid_block')

    memory = W['prototype.weight'][label].reshape(-1, width)
    Q = affine(x, 'q')
    loss = 0.5*((attention(Q, affine(memory, 'k'), affine(memory, 'v')) - Q)**2).mean()
    asked = attention(affine(x, 'Q_former.attn.ql'), affine(memory, 'Q_former.attn.kl'), affine(memory, 'Q_former.attn.vl'))
    x = x + affine(affine(asked, 'Q_former.attn.proj'), 'Q_former.z1')
    x = x + affine(mlp(normalise(x, 'Q_former.norm2'), 'Q_former'), 'Q_former.z2')

    for i in range(pairs): x = block(affine(torch.cat([x, kept.pop()], 1), f'out_blocks.{i}.skip_linear'), f'out_blocks.{i}')
    numbers = affine(normalise(x, 'norm'), 'decoder_pred')[-side*side:]
    canvas = torch.zeros(channels, side*p, side*p, dtype=torch.float64)
    for n, row in enumerate(numbers):
        for y in range(p):
            for z in range(p): canvas[:, n//side*p + y, n % side*p + z] = row[(y*p + z)*channels:(y*p + z + 1)*channels]
    padded, out = torch.nn.functional.pad(canvas, (1, 1, 1, 1)), torch.zeros_like(canvas)
    for dy in range(3):
        for dx in range(3):
            out += torch.einsum('oc,cyx->oyx', W['final_layer.weight'][:, :, dy, dx],
                                padded[:, dy:dy + side*p, dx:dx + side*p])
    return out + W['final_layer.bias'][:, None, None], loss
