/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only file that runs a network by oneDNN. Its C API changed with version 3: memory descriptors became
 * opaque, operation descriptors went; the section "Versions" hides that.
 *
 * The number of threads is fixed when a primitive is made, from OpenMP's setting; when it runs, the
 * setting of the thread that calls has to agree. Both are made so for the time of the call.
 * Weights are packed once into the layout the kernel asks for. Scratchpads are the user's, which
 * makes primitives safe to run from several threads.
 */
#include "predict/cpu/convolution.h"

#include "base/error.h"

#include <dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_POST = 8, SPATIAL = 3 };

struct convolution {
    dnnl_engine_t engine;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
    dnnl_memory_t weights, bias; /* packed; only read once made */
    bool transposed;
    int threads;
    size_t n_post;
    post_operation post[MAX_POST];
};

struct convolution_binding {
    const convolution *conv;
    dnnl_stream_t stream;
    dnnl_memory_t source, destination, scratch;
    dnnl_memory_t operand[MAX_POST]; /* NULL where the post-operation has none */
    dnnl_exec_arg_t args[5 + MAX_POST];
    int n_args;
};

/* ---- Versions ------------------------------------------------------------------------------- */

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t layout; /* owned */
typedef const_dnnl_memory_desc_t layout_ref;
static layout_ref layout_of(const layout *l)
{
    return *l;
}
static dnnl_status_t layout_init(layout *l, int rank, const dnnl_dims_t dims, dnnl_data_type_t type,
                                 dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_create_with_tag(l, rank, dims, type, tag);
}
static void layout_done(layout *l)
{
    if (*l)
        dnnl_memory_desc_destroy(*l);
}
#else
typedef dnnl_memory_desc_t layout;
typedef const dnnl_memory_desc_t *layout_ref;
static layout_ref layout_of(const layout *l)
{
    return l;
}
static dnnl_status_t layout_init(layout *l, int rank, const dnnl_dims_t dims, dnnl_data_type_t type,
                                 dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_init_by_tag(l, rank, dims, type, tag);
}
static void layout_done(layout *l)
{
    (void)l;
}
#endif

static dnnl_status_t append_eltwise(dnnl_post_ops_t ops, dnnl_alg_kind_t kind, float alpha)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_post_ops_append_eltwise(ops, kind, alpha, 0);
#else
    return dnnl_post_ops_append_eltwise(ops, 1, kind, alpha, 0);
#endif
}

static dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef);
#else
    return dnnl_post_ops_append_sum(ops, 1);
#endif
}

/* A convolution of `source` to `destination`. For a transposed one these are its output and input.
 */
typedef struct geometry {
    layout source, weights, bias, destination;
    bool has_bias;
    dnnl_dims_t stride, dilation, pad_begin, pad_end;
} geometry;

static dnnl_status_t forward_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const geometry *g,
                                dnnl_primitive_attr_t attr)
{
    layout_ref bias = g->has_bias ? layout_of(&g->bias) : NULL;
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_convolution_forward_primitive_desc_create(
        pd, engine, dnnl_forward_inference, dnnl_convolution_direct, layout_of(&g->source),
        layout_of(&g->weights), bias, layout_of(&g->destination), g->stride, g->dilation,
        g->pad_begin, g->pad_end, attr);
#else
    dnnl_convolution_desc_t desc;
    dnnl_status_t s = dnnl_dilated_convolution_forward_desc_init(
        &desc, dnnl_forward_inference, dnnl_convolution_direct, layout_of(&g->source),
        layout_of(&g->weights), bias, layout_of(&g->destination), g->stride, g->dilation,
        g->pad_begin, g->pad_end);
    return s == dnnl_success ? dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL) : s;
#endif
}

static dnnl_status_t backward_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const geometry *g,
                                 dnnl_primitive_attr_t attr, const_dnnl_primitive_desc_t hint)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_convolution_backward_data_primitive_desc_create(
        pd, engine, dnnl_convolution_direct, layout_of(&g->source), layout_of(&g->weights),
        layout_of(&g->destination), g->stride, g->dilation, g->pad_begin, g->pad_end, hint, attr);
#else
    dnnl_convolution_desc_t desc;
    dnnl_status_t s = dnnl_dilated_convolution_backward_data_desc_init(
        &desc, dnnl_convolution_direct, layout_of(&g->source), layout_of(&g->weights),
        layout_of(&g->destination), g->stride, g->dilation, g->pad_begin, g->pad_end);
    return s == dnnl_success ? dnnl_primitive_desc_create(pd, &desc, attr, engine, hint) : s;
#endif
}

/* ---- Errors and types ----------------------------------------------------------------------- */

static dm_status failed(dm_error *err, dnnl_status_t s, const char *name, const char *what)
{
    if (s == dnnl_out_of_memory)
        return error_set(err, DM_ERROR_MEMORY, NULL, "use a smaller tile or fewer threads",
                         "not enough memory for convolution \"%s\" (%s)", name, what);
    return error_set(err, DM_ERROR_DEVICE, NULL, "report this with the network's definition",
                     "oneDNN failed at convolution \"%s\": %s, status %d", name, what, (int)s);
}

static dm_status unsupported(dm_error *err, const convolution_spec *spec)
{
    bool half = spec->type != ELEMENT_F32;
    return error_set(err, DM_ERROR_UNSUPPORTED, NULL,
                     half ? "use --precision float32"
                          : "change the layer, or use another oneDNN version",
                     "convolution \"%s\" (%zu to %zu channels, kernel %zux%zux%zu): %s has no %s "
                     "kernel for it on this CPU",
                     spec->name, spec->in_channels, spec->out_channels, spec->kernel[0],
                     spec->kernel[1], spec->kernel[2], convolution_library(),
                     spec->type == ELEMENT_BF16  ? "bf16"
                     : spec->type == ELEMENT_F16 ? "fp16"
                                                 : "float32");
}

static dnnl_data_type_t data_type(element_type type)
{
    return type == ELEMENT_BF16 ? dnnl_bf16 : type == ELEMENT_F16 ? dnnl_f16 : dnnl_f32;
}

/* ---- Making --------------------------------------------------------------------------------- */

static dnnl_status_t tensor_layout(layout *l, size_t channels, const size_t dim[3],
                                   element_type type)
{
    dnnl_dims_t dims = {1, (dnnl_dim_t)channels, (dnnl_dim_t)dim[0], (dnnl_dim_t)dim[1],
                        (dnnl_dim_t)dim[2]};
    return layout_init(l, 5, dims, data_type(type), dnnl_ndhwc);
}

/* Weights as a convolution sees them: (groups,) outputs, inputs, kernel. A transposed convolution's
 * (I, O/groups, ...) are just that for the convolution it is the gradient of. */
static dnnl_status_t weight_layout(layout *l, const convolution_spec *spec, element_type type,
                                   bool packed)
{
    size_t outer = spec->transposed ? spec->in_channels : spec->out_channels;
    size_t inner = spec->transposed ? spec->out_channels : spec->in_channels;
    dnnl_dims_t dims;
    int rank = 0;
    if (spec->groups > 1)
        dims[rank++] = (dnnl_dim_t)spec->groups;
    dims[rank++] = (dnnl_dim_t)(outer / spec->groups);
    dims[rank++] = (dnnl_dim_t)(inner / spec->groups);
    for (int a = 0; a < SPATIAL; a++)
        dims[rank++] = (dnnl_dim_t)spec->kernel[a];
    dnnl_format_tag_t plain = spec->groups > 1 ? dnnl_goidhw : dnnl_oidhw;
    return layout_init(l, rank, dims, data_type(type), packed ? dnnl_format_tag_any : plain);
}

static void geometry_done(geometry *g)
{
    layout_done(&g->source);
    layout_done(&g->weights);
    layout_done(&g->bias);
    layout_done(&g->destination);
}

static dnnl_status_t geometry_init(geometry *g, const convolution_spec *spec, element_type out_type)
{
    dnnl_dims_t channels = {(dnnl_dim_t)spec->out_channels};
    layout *from = spec->transposed ? &g->destination : &g->source;
    layout *to = spec->transposed ? &g->source : &g->destination;
    memset(g, 0, sizeof *g);
    dnnl_status_t s = tensor_layout(from, spec->in_channels, spec->in, spec->type);
    if (s == dnnl_success)
        s = tensor_layout(to, spec->out_channels, spec->out, out_type);
    if (s == dnnl_success)
        s = weight_layout(&g->weights, spec, spec->type, true);
    g->has_bias = spec->bias != NULL;
    if (s == dnnl_success && g->has_bias)
        s = layout_init(&g->bias, 1, channels, dnnl_f32, dnnl_a);
    for (int a = 0; a < SPATIAL; a++) {
        dnnl_dim_t in = (dnnl_dim_t)(spec->transposed ? spec->out[a] : spec->in[a]);
        dnnl_dim_t out = (dnnl_dim_t)(spec->transposed ? spec->in[a] : spec->out[a]);
        dnnl_dim_t reach = (dnnl_dim_t)((spec->kernel[a] - 1) * spec->dilation[a] + 1);
        g->stride[a] = (dnnl_dim_t)spec->stride[a];
        g->dilation[a] = (dnnl_dim_t)spec->dilation[a] - 1; /* oneDNN counts the gaps */
        g->pad_begin[a] = (dnnl_dim_t)spec->pad_begin[a];
        /* What the output's size needs; padding beyond it is never looked at. */
        dnnl_dim_t end = (out - 1) * g->stride[a] + reach - in - g->pad_begin[a];
        g->pad_end[a] = end > 0 ? end : 0;
    }
    return s;
}

static dnnl_status_t append_post(dnnl_post_ops_t ops, const post_operation *p,
                                 const convolution_spec *spec, bool staged)
{
    switch (p->op) {
    case CHAIN_ADD_TENSOR: {
        if (p->in_place && !staged)
            return append_sum(ops);
        layout l = {0};
        dnnl_status_t s = tensor_layout(&l, spec->out_channels, spec->out, p->type);
        if (s == dnnl_success)
            s = dnnl_post_ops_append_binary(ops, dnnl_binary_add, layout_of(&l));
        layout_done(&l);
        return s;
    }
    case CHAIN_RELU:
        return append_eltwise(ops, dnnl_eltwise_relu, 0);
    case CHAIN_LEAKY_RELU:
        return append_eltwise(ops, dnnl_eltwise_relu, p->alpha);
    case CHAIN_ELU:
        return append_eltwise(ops, dnnl_eltwise_elu, p->alpha);
    case CHAIN_GELU:
        return append_eltwise(ops, dnnl_eltwise_gelu_erf, 0);
    case CHAIN_GELU_TANH:
        return append_eltwise(ops, dnnl_eltwise_gelu_tanh, 0);
    case CHAIN_SIGMOID:
        return append_eltwise(ops, dnnl_eltwise_logistic, 0);
    case CHAIN_TANH:
        return append_eltwise(ops, dnnl_eltwise_tanh, 0);
    case CHAIN_SOFTPLUS:
        return append_eltwise(ops, dnnl_eltwise_soft_relu, 1);
    default:
        return dnnl_unimplemented;
    }
}

static bool is_staged(const convolution_spec *spec, size_t n_post)
{
    return spec->staged || n_post < spec->n_post;
}

/* The library's choice for the first n_post operations. */
static dnnl_status_t describe(const convolution_spec *spec, size_t n_post, dnnl_engine_t engine,
                              dnnl_primitive_desc_t *pd)
{
    bool staged = is_staged(spec, n_post);
    element_type out_type = staged ? ELEMENT_F32 : spec->out_type;
    geometry g, forward = {0};
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_desc_t hint = NULL;
    *pd = NULL;
    dnnl_status_t s = geometry_init(&g, spec, out_type);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_create(&attr);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (s == dnnl_success && n_post > 0)
        s = dnnl_post_ops_create(&ops);
    for (size_t i = 0; s == dnnl_success && i < n_post; i++)
        s = append_post(ops, &spec->post[i], spec, staged);
    if (s == dnnl_success && ops)
        s = dnnl_primitive_attr_set_post_ops(attr, ops);
    if (s == dnnl_success && spec->transposed) {
        /* The gradient wants to see its forward pass, in one type throughout. */
        s = geometry_init(&forward, spec, spec->type);
        if (s == dnnl_success)
            s = forward_pd(&hint, engine, &forward, NULL);
        if (s == dnnl_success)
            s = backward_pd(pd, engine, &g, attr, hint);
    } else if (s == dnnl_success) {
        s = forward_pd(pd, engine, &g, attr);
    }
    if (hint)
        dnnl_primitive_desc_destroy(hint);
    if (ops)
        dnnl_post_ops_destroy(ops);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    geometry_done(&forward);
    geometry_done(&g);
    return s;
}

static const char *kernel_name(const_dnnl_primitive_desc_t pd)
{
    const char *name = NULL;
    if (dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name) != dnnl_success)
        return "unknown";
    return name;
}

/* oneDNN 2.6.3's convolutions by matrix products, chosen below AVX-512, add another operand than
 * the one they are given; so do those of 1x1x1 kernels in bf16 that it chooses for odd numbers of
 * channels. */
static bool is_wrong(const convolution_spec *spec, size_t n_post, const char *kernel)
{
    bool operand = false;
    for (size_t i = 0; i < n_post; i++)
        operand |= spec->post[i].op == CHAIN_ADD_TENSOR;
    return operand && (strstr(kernel, "gemm") || strstr(kernel, "jit_bf16_1x1"));
}

/* The longest run of post-operations that still has a fast kernel; if none has, the longest with
 * any. */
static dnnl_status_t choose(const convolution_spec *spec, convolution *conv)
{
    size_t most = spec->n_post < MAX_POST ? spec->n_post : MAX_POST;
    bool fast = false;
    for (size_t n = most + 1; n-- > 0 && !fast;) {
        dnnl_primitive_desc_t pd;
        dnnl_status_t s = describe(spec, n, conv->engine, &pd);
        if (s == dnnl_out_of_memory)
            return s;
        if (s != dnnl_success)
            continue;
        fast = strncmp(kernel_name(pd), "ref", 3) != 0;
        if (is_wrong(spec, n, kernel_name(pd)) || (conv->pd && !fast)) {
            fast = false;
            dnnl_primitive_desc_destroy(pd);
            continue;
        }
        if (conv->pd)
            dnnl_primitive_desc_destroy(conv->pd);
        conv->pd = pd;
        conv->n_post = n;
    }
    return conv->pd ? dnnl_success : dnnl_unimplemented;
}

static layout_ref layout_asked(const convolution *conv, dnnl_query_t what)
{
    return dnnl_primitive_desc_query_md(conv->pd, what, 0);
}

static dnnl_status_t pack_weights(const convolution_spec *spec, convolution *conv)
{
    layout plain = {0};
    dnnl_memory_t from = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_stream_t stream = NULL;
    layout_ref packed = layout_asked(conv, dnnl_query_weights_md);
    dnnl_status_t s = weight_layout(&plain, spec, ELEMENT_F32, false);
    if (s == dnnl_success)
        s = dnnl_memory_create(&conv->weights, packed, conv->engine, DNNL_MEMORY_ALLOCATE);
    if (s == dnnl_success) /* only read; the API has no const */
        s = dnnl_memory_create(&from, layout_of(&plain), conv->engine, (void *)spec->weight);
    if (s == dnnl_success)
        s = dnnl_reorder_primitive_desc_create(&pd, layout_of(&plain), conv->engine, packed,
                                               conv->engine, NULL);
    if (s == dnnl_success)
        s = dnnl_primitive_create(&reorder, pd);
    if (s == dnnl_success)
        s = dnnl_stream_create(&stream, conv->engine, dnnl_stream_default_flags);
    if (s == dnnl_success) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, conv->weights}};
        s = dnnl_primitive_execute(reorder, stream, 2, args);
    }
    if (s == dnnl_success)
        s = dnnl_stream_wait(stream);
    if (stream)
        dnnl_stream_destroy(stream);
    if (reorder)
        dnnl_primitive_destroy(reorder);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (from)
        dnnl_memory_destroy(from);
    layout_done(&plain);
    return s;
}

static dnnl_status_t copy_bias(const convolution_spec *spec, convolution *conv)
{
    layout l = {0};
    dnnl_dims_t dims = {(dnnl_dim_t)spec->out_channels};
    void *data = NULL;
    dnnl_status_t s = layout_init(&l, 1, dims, dnnl_f32, dnnl_a);
    if (s == dnnl_success)
        s = dnnl_memory_create(&conv->bias, layout_of(&l), conv->engine, DNNL_MEMORY_ALLOCATE);
    if (s == dnnl_success)
        s = dnnl_memory_get_data_handle(conv->bias, &data);
    if (s == dnnl_success)
        memcpy(data, spec->bias, spec->out_channels * sizeof(float));
    layout_done(&l);
    return s;
}

static dm_status make(const convolution_spec *spec, convolution *conv, dm_error *err)
{
    dnnl_status_t s = dnnl_engine_create(&conv->engine, dnnl_cpu, 0);
    if (s != dnnl_success)
        return failed(err, s, spec->name, "engine");
    s = choose(spec, conv);
    if (s == dnnl_unimplemented)
        return unsupported(err, spec);
    if (s == dnnl_success)
        s = dnnl_primitive_create(&conv->primitive, conv->pd);
    if (s != dnnl_success)
        return failed(err, s, spec->name, "kernel");
    s = pack_weights(spec, conv);
    if (s == dnnl_success && spec->bias)
        s = copy_bias(spec, conv);
    if (s != dnnl_success)
        return failed(err, s, spec->name, "weights");
    return DM_OK;
}

dm_status convolution_create(const convolution_spec *spec, convolution **conv, size_t *post_done,
                             dm_error *err)
{
    *conv = NULL;
    *post_done = 0;
    convolution *c = array_zero(1, sizeof *c);
    if (!c)
        return error_memory(err, sizeof *c, "a convolution");
    c->transposed = spec->transposed;
    c->threads = spec->threads > 0 ? (int)spec->threads : 1;
    int threads = omp_get_max_threads();
    omp_set_num_threads(c->threads);
    dm_status status = make(spec, c, err);
    omp_set_num_threads(threads);
    if (status != DM_OK) {
        convolution_free(c);
        return status;
    }
    for (size_t i = 0; i < c->n_post; i++) {
        c->post[i] = spec->post[i];
        c->post[i].in_place = c->post[i].in_place && !is_staged(spec, c->n_post);
    }
    *post_done = c->n_post;
    *conv = c;
    return DM_OK;
}

void convolution_free(convolution *conv)
{
    if (!conv)
        return;
    if (conv->bias)
        dnnl_memory_destroy(conv->bias);
    if (conv->weights)
        dnnl_memory_destroy(conv->weights);
    if (conv->primitive)
        dnnl_primitive_destroy(conv->primitive);
    if (conv->pd)
        dnnl_primitive_desc_destroy(conv->pd);
    if (conv->engine)
        dnnl_engine_destroy(conv->engine);
    free(conv);
}

size_t convolution_scratch_bytes(const convolution *conv)
{
    return dnnl_memory_desc_get_size(layout_asked(conv, dnnl_query_scratchpad_md));
}

const char *convolution_kernel(const convolution *conv)
{
    return kernel_name(conv->pd);
}

bool convolution_is_reference(const convolution *conv)
{
    return strncmp(kernel_name(conv->pd), "ref", 3) == 0;
}

/* ---- Running -------------------------------------------------------------------------------- */

static dnnl_status_t add_memory(convolution_binding *b, dnnl_memory_t *memory, layout_ref l,
                                int argument)
{
    dnnl_status_t s = dnnl_memory_create(memory, l, b->conv->engine, DNNL_MEMORY_NONE);
    if (s == dnnl_success)
        b->args[b->n_args++] = (dnnl_exec_arg_t){argument, *memory};
    return s;
}

static dnnl_status_t bind(convolution_binding *b, const convolution *c)
{
    bool t = c->transposed;
    layout_ref source = layout_asked(c, t ? dnnl_query_diff_dst_md : dnnl_query_src_md);
    layout_ref destination = layout_asked(c, t ? dnnl_query_diff_src_md : dnnl_query_dst_md);
    dnnl_status_t s = dnnl_stream_create(&b->stream, c->engine, dnnl_stream_default_flags);
    if (s == dnnl_success)
        s = add_memory(b, &b->source, source, t ? DNNL_ARG_DIFF_DST : DNNL_ARG_SRC);
    if (s == dnnl_success)
        s = add_memory(b, &b->destination, destination, t ? DNNL_ARG_DIFF_SRC : DNNL_ARG_DST);
    if (s == dnnl_success)
        s = add_memory(b, &b->scratch, layout_asked(c, dnnl_query_scratchpad_md),
                       DNNL_ARG_SCRATCHPAD);
    b->args[b->n_args++] = (dnnl_exec_arg_t){DNNL_ARG_WEIGHTS, c->weights};
    if (c->bias)
        b->args[b->n_args++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, c->bias};
    for (size_t i = 0; s == dnnl_success && i < c->n_post; i++) {
        int argument = DNNL_ARG_ATTR_MULTIPLE_POST_OP((int)i) | DNNL_ARG_SRC_1;
        if (c->post[i].op == CHAIN_ADD_TENSOR && !c->post[i].in_place)
            s = add_memory(b, &b->operand[i],
                           dnnl_primitive_desc_query_md(c->pd, dnnl_query_exec_arg_md, argument),
                           argument);
    }
    return s;
}

dm_status convolution_bind(const convolution *conv, convolution_binding **binding, dm_error *err)
{
    *binding = NULL;
    convolution_binding *b = array_zero(1, sizeof *b);
    if (!b)
        return error_memory(err, sizeof *b, "a convolution's handles");
    b->conv = conv;
    dnnl_status_t s = bind(b, conv);
    if (s != dnnl_success) {
        convolution_unbind(b);
        return failed(err, s, convolution_kernel(conv), "handles");
    }
    *binding = b;
    return DM_OK;
}

void convolution_unbind(convolution_binding *binding)
{
    if (!binding)
        return;
    for (size_t i = 0; i < MAX_POST; i++)
        if (binding->operand[i])
            dnnl_memory_destroy(binding->operand[i]);
    if (binding->scratch)
        dnnl_memory_destroy(binding->scratch);
    if (binding->destination)
        dnnl_memory_destroy(binding->destination);
    if (binding->source)
        dnnl_memory_destroy(binding->source);
    if (binding->stream)
        dnnl_stream_destroy(binding->stream);
    free(binding);
}

/* The library only reads what it is given as a source; its API has no const. */
static dnnl_status_t point_to(dnnl_memory_t memory, const void *data)
{
    return dnnl_memory_set_data_handle(memory, (void *)data);
}

dm_status convolution_run(convolution_binding *binding, const void *source, void *destination,
                          const void *const *operands, void *scratch, dm_error *err)
{
    const convolution *c = binding->conv;
    int threads = omp_get_max_threads();
    omp_set_num_threads(c->threads);
    dnnl_status_t s = point_to(binding->source, source);
    if (s == dnnl_success)
        s = point_to(binding->destination, destination);
    if (s == dnnl_success)
        s = point_to(binding->scratch, scratch);
    for (size_t i = 0; s == dnnl_success && i < c->n_post; i++)
        if (binding->operand[i])
            s = point_to(binding->operand[i], operands[i]);
    if (s == dnnl_success)
        s = dnnl_primitive_execute(c->primitive, binding->stream, binding->n_args, binding->args);
    if (s == dnnl_success)
        s = dnnl_stream_wait(binding->stream);
    omp_set_num_threads(threads);
    return s == dnnl_success ? DM_OK : failed(err, s, convolution_kernel(c), "run");
}

/* ---- What there is -------------------------------------------------------------------------- */

static const char *isa_name(void)
{
    int isa = (int)dnnl_get_effective_cpu_isa();
    /* Each set's number has the bits of the sets below it. */
    static const struct {
        int bits;
        const char *name;
    } known[] = {
        {dnnl_cpu_isa_avx512_core_amx, "AVX-512 BF16 AMX"},
        {dnnl_cpu_isa_avx512_core_bf16, "AVX-512 BF16"},
        {dnnl_cpu_isa_avx512_core, "AVX-512"},
        {dnnl_cpu_isa_avx2, "AVX2"},
        {dnnl_cpu_isa_avx, "AVX"},
        {dnnl_cpu_isa_sse41, "SSE4.1"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((isa & known[i].bits) == known[i].bits)
            return known[i].name;
    return "baseline";
}

static char library_text[64];
static pthread_once_t library_once = PTHREAD_ONCE_INIT;

static void describe_library(void)
{
    const dnnl_version_t *v = dnnl_version();
    snprintf(library_text, sizeof library_text, "oneDNN %d.%d.%d, %s", v->major, v->minor, v->patch,
             isa_name());
}

const char *convolution_library(void)
{
    pthread_once(&library_once, describe_library);
    return library_text;
}

double convolution_gain(element_type type)
{
    int isa = (int)dnnl_get_effective_cpu_isa(), amx = (int)dnnl_cpu_isa_avx512_core_amx;
    if (type == ELEMENT_F32)
        return 1;
    return (isa & amx) == amx ? 16 : 2;
}

bool convolution_is_native(element_type type)
{
    int isa = (int)dnnl_get_effective_cpu_isa();
    int bf16 = (int)dnnl_cpu_isa_avx512_core_bf16;
    return type == ELEMENT_F32 || (type == ELEMENT_BF16 && (isa & bf16) == bf16);
}
