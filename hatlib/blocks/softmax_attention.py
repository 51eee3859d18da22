"""Softmax attention with an additive bias: the one place of it in the library."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["attend"]

# Bound of the scores that are recomputed at once: about the cache of a core, or enough work for a GPU.
CPU_BYTES = 3 * 2**19
GPU_BYTES = 256 * 2**20


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, scale: float, dropout: float = 0.0) -> Tensor:
    """softmax(scale * q k^T + bias) v.

    Where the bias is trained, the scores are computed again in the backward pass, window by window, instead of being
    kept; gradients of gradients are not possible then.

    Args:
        q: queries, (W, heads, N, d): W windows of all images.
        k: keys, (W, heads, M, d).
        v: values, (W, heads, M, d).
        bias: additive logits, (heads, N, M) for all windows, or (W, heads, N, M).
        scale: factor of the logits.
        dropout: probability of dropping an attention weight.

    Returns:
        (W, heads, N, d)
    """
    bias = bias.to(q.dtype)
    if torch.compiler.is_exporting():
        # Spelt out, because the memory layout of the fused kernel's result does not survive the way to ONNX.
        return ((q * scale) @ k.mT + bias).softmax(-1) @ v
    if bias.ndim == 3:
        if bias.requires_grad and torch.is_grad_enabled() and not dropout and not torch.compiler.is_compiling():
            return _RecomputedAttention.apply(q, k, v, bias, scale)
        bias = bias[None]  # the fused kernels want four dimensions
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """The types are settled by then; some devices, such as meta, know no autocast at all."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class _RecomputedAttention(torch.autograd.Function):
    """Attention whose bias needs a gradient, for which PyTorch's own kernels would keep all scores.

    Forward is the fused kernel. Backward computes the scores of a few windows at a time from q, k and the bias: with
    P = softmax(scale q k^T + bias), dP = dO v^T and dS = P * (dP - rowsum(dO * O)),
    dv = P^T dO, dq = scale dS k, dk = scale dS^T q, and dbias is the sum of dS over the windows.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        with _without_autocast(q):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.detach()[None], scale=scale)
        ctx.save_for_backward(q, k, v, bias, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out = ctx.saved_tensors
        windows, heads, n, _ = q.shape
        wide = torch.promote_types(bias.dtype, torch.float32)  # in which sums are taken
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_bias = torch.zeros_like(bias, dtype=wide)
        delta = (grad_out.to(wide) * out).sum(-1, keepdim=True)
        # As many windows at once as fit into a core's cache, or give a GPU enough to do.
        budget = CPU_BYTES if q.device.type == "cpu" else GPU_BYTES
        step = min(windows, max(1, budget // (heads * n * k.shape[2] * wide.itemsize)))
        p_buffer, ds_buffer = (q.new_empty(step * heads, n, k.shape[2]) for _ in range(2))
        flat_bias = bias.repeat(step, 1, 1)
        with _without_autocast(q):
            for i in range(0, windows, step):
                part = slice(i, i + step)
                qi, ki, vi, do = (t[part].flatten(0, 1) for t in (q, k, v, grad_out))
                p, ds = p_buffer[: len(qi)], ds_buffer[: len(qi)]
                torch.baddbmm(flat_bias[: len(qi)], qi, ki.mT, alpha=ctx.scale, out=p)
                p = torch.softmax(p, -1, out=p) if p.dtype == wide else p.softmax(-1, dtype=wide).to(p.dtype)
                grad_v[part] = (p.mT @ do).unflatten(0, (-1, heads))
                torch.bmm(do, vi.mT, out=ds)
                ds.sub_(delta[part].flatten(0, 1)).mul_(p)
                grad_bias += ds.unflatten(0, (-1, heads)).sum(0, dtype=wide) if step > 1 else ds
                grad_q[part] = (ds @ ki).unflatten(0, (-1, heads))
                grad_k[part] = (ds.mT @ qi).unflatten(0, (-1, heads))
        return grad_q.mul_(ctx.scale), grad_k.mul_(ctx.scale), grad_v, grad_bias.to(bias.dtype), None
