/* SPDX-License-Identifier: Apache-2.0 */
/* All that the choice of who computes a convolution depends on, but for device and library. */
#include <stdarg.h>
#include <stdio.h>

#include "predict/cuda/device_network_parts.h"

/* What was written so far; `room` 0: it did not fit. */
typedef struct writer {
    char *at;
    size_t room;
} writer;

__attribute__((format(printf, 2, 3))) static void add(writer *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(w->at, w->room, format, args);
    va_end(args);
    size_t used = n < 0 || (size_t)n >= w->room ? w->room : (size_t)n;
    w->at += used;
    w->room -= used;
}

static const char *type_name(element_type type)
{
    return type == ELEMENT_F32 ? "float32" : type == ELEMENT_BF16 ? "bf16" : "fp16";
}

/* "bf16 32x32x32x64 of 96 at 0": z, y, x, channels; the pitch, and the address within 16 bytes. */
static void add_tensor(writer *w, const device_tensor *t)
{
    add(w, "%s %ux%ux%ux%u", type_name(t->type), t->dim[0], t->dim[1], t->dim[2], t->channels);
    if (t->pitch != t->channels)
        add(w, " of %zu", t->pitch);
    if ((uintptr_t)t->data % LIBRARY_CONVOLUTION_ALIGNMENT != 0)
        add(w, " at %u", (unsigned)((uintptr_t)t->data % LIBRARY_CONVOLUTION_ALIGNMENT));
}

static void add_triple(writer *w, const char *name, const int v[3], int usual)
{
    if (v[0] != usual || v[1] != usual || v[2] != usual)
        add(w, ", %s %dx%dx%d", name, v[0], v[1], v[2]);
}

static void add_link(writer *w, const device_network *net, const device_op *op, size_t i,
                     const device_tensor *out)
{
    add(w, "; %d", (int)op->links[i].op);
    if (op->links[i].alpha != 0)
        add(w, " %a", (double)op->links[i].alpha);
    if (op->link_tensors[i] < 0)
        return;
    device_tensor t = network_tensor(net, op->link_tensors[i], 0);
    add(w, " ");
    add_tensor(w, &t);
    if (t.data == out->data)
        add(w, " in place");
}

bool convolution_operands(const device_network *net, const device_op *op, const device_tensor *in,
                          const device_tensor *out, unsigned samples, bool links,
                          char text[CONVOLUTION_OPERANDS])
{
    const device_convolution *c = &op->conv.conv;
    writer w = {text, CONVOLUTION_OPERANDS};
    add(&w, "%u * ", samples);
    add_tensor(&w, in);
    add(&w, " -> ");
    add_tensor(&w, out);
    add_triple(&w, "kernel", c->kernel, 0);
    add_triple(&w, "stride", c->stride, 1);
    add_triple(&w, "dilation", c->dilation, 1);
    add_triple(&w, "padding", c->pad_begin, 0);
    if (c->groups != 1)
        add(&w, ", groups %u", c->groups);
    if (c->transposed)
        add(&w, ", transposed");
    if (c->tf32)
        add(&w, ", tf32");
    if (links && op->bias)
        add(&w, "; bias");
    for (size_t i = 0; links && i < op->n_links; i++)
        add_link(&w, net, op, i, out);
    return w.room > 0;
}
