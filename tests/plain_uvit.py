"""U-ViT with text as the released code runs it, for the benchmark alone: all 256 text positions, padded and unmasked, and attention
written out in float32. No latent or text cache and no prototypes; the same widths and depth as ours, from Bao et al. 2023."""
import torch
from torch import nn

class PlainBlock(nn.Module):
    def __init__(self, dim, heads, skip):
        super().__init__()
        self.skip = nn.Linear(2*dim, dim) if skip else None
        self.norm1, self.qkv, self.proj, self.heads = (nn.LayerNorm(dim), nn.Linear(dim, 3*dim, bias=False),
                                                       nn.Linear(dim, dim), heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 4*dim), nn.GELU(), nn.Linear(4*dim, dim))
    def forward(self, x, skip=None):
        if self.skip is not None: x = self.skip(torch.cat([x, skip], -1))
        B, L, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, L, 3, self.heads, D//self.heads).permute(2, 0, 3, 1, 4).float()
        attention = ((q @ k.transpose(-2, -1))*(D//self.heads)**-0.5).softmax(-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(B, L, D))
        return x + self.mlp(self.norm2(x))

class PlainUViT(nn.Module):
    def __init__(self, size=32, channels=4, patch=2, dim=512, depth=16, heads=8, text_dim=768, text_tokens=256, classes=7):
        super().__init__()
        self.patch, self.side, self.dim = patch, size//patch, dim
        self.embed, self.text, self.classes = (nn.Conv2d(channels, dim, patch, patch), nn.Linear(text_dim, dim),
                                               nn.Embedding(classes + 1, dim))
        self.position = nn.Parameter(torch.randn(1, 2 + text_tokens + self.side**2, dim)*0.02)
        block = lambda skip: PlainBlock(dim, heads, skip)
        self.encoder, self.middle, self.decoder = (nn.ModuleList(block(False) for _ in range(depth//2)), block(False),
                                                   nn.ModuleList(block(True) for _ in range(depth//2)))
        self.norm, self.out, self.final = (nn.LayerNorm(dim), nn.Linear(dim, patch*patch*channels),
                                           nn.Conv2d(channels, channels, 3, padding=1))
    def forward(self, x, t, c, text):
        half = self.dim//2
        angle = t[:, None]*torch.exp(-torch.arange(half, device=t.device)*(9.21034/half))[None]
        time = torch.cat([angle.cos(), angle.sin()], -1)
        image = self.embed(x).flatten(2).transpose(1, 2)
        h, skips = torch.cat([time[:, None], self.classes(c)[:, None], self.text(text), image], 1) + self.position, []
        for b in self.encoder: h = b(h); skips.append(h)
        h = self.middle(h)
        for b in self.decoder: h = b(h, skips.pop())
        h = self.out(self.norm(h[:, -self.side**2:]))
        B, C = x.shape[:2]
        return self.final(h.reshape(B, self.side, self.side, self.patch, self.patch, C)
                          .permute(0, 5, 1, 3, 2, 4).reshape(B, C, *x.shape[2:]))
