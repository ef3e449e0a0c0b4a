/* SPDX-License-Identifier: Apache-2.0 */
/* What a tuning file holds for: the device, the library, this build, and a plan's steps and sizes. */
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/output_file.h"
#include "base/text_stream.h"
#include "predict/cuda/cuda_tuning.h"
#include "predict/cuda/device_check.h"

/* ---- The build ------------------------------------------------------------------------------ */

typedef struct build_search {
    uintptr_t inside; /* an address of the object that is looked for */
    char *text;
    size_t room;
} build_search;

static bool holds(const struct dl_phdr_info *object, uintptr_t address)
{
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        uintptr_t start = object->dlpi_addr + part->p_vaddr;
        if (part->p_type == PT_LOAD && address >= start && address - start < part->p_memsz)
            return true;
    }
    return false;
}

/* The note in which the linker puts a checksum of what it links. */
static void read_notes(const unsigned char *note, size_t size, build_search *search)
{
    ElfW(Nhdr) header;
    while (size >= sizeof header) {
        memcpy(&header, note, sizeof header);
        size_t name = (header.n_namesz + (size_t)3) / 4 * 4, all = sizeof header + name;
        size_t value = (header.n_descsz + (size_t)3) / 4 * 4;
        if (value > size || all > size - value)
            return;
        if (header.n_type == NT_GNU_BUILD_ID && header.n_namesz == 4 &&
            memcmp(note + sizeof header, "GNU", 4) == 0) {
            for (size_t i = 0; i < header.n_descsz && 2 * i + 2 < search->room; i++)
                snprintf(search->text + 2 * i, 3, "%02x", note[all + i]);
            return;
        }
        note += all + value;
        size -= all + value;
    }
}

static int visit(struct dl_phdr_info *object, size_t size, void *context)
{
    build_search *search = context;
    (void)size;
    if (!holds(object, search->inside))
        return 0;
    for (int i = 0; i < object->dlpi_phnum; i++)
        if (object->dlpi_phdr[i].p_type == PT_NOTE)
            read_notes((const unsigned char *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr),
                       object->dlpi_phdr[i].p_memsz, search);
    return 1;
}

/* The version alone where the linker gave no checksum. */
static void find_build(char *text, size_t room)
{
    static const char here;
    build_search search = {.inside = (uintptr_t)&here, .text = text, .room = room};
    snprintf(text, room, "%s", DOSEMAP_VERSION);
    (void)dl_iterate_phdr(visit, &search);
}

/* ---- The network ---------------------------------------------------------------------------- */

static void print_triple(FILE *out, const int v[3])
{
    fprintf(out, " %d %d %d", v[0], v[1], v[2]);
}

static void print_tensor(FILE *out, const plan_tensor *t)
{
    fprintf(out, "tensor %zu %zu %zu %zu, %zu %zu %d\n", t->dim[0], t->dim[1], t->dim[2],
            t->channels, t->pitch, t->channel_start, (int)t->type);
}

static void print_step(FILE *out, const plan_step *step)
{
    fprintf(out, "step %d %d %d %d", (int)step->kind, step->in, step->out, step->bias != NULL);
    if (step->node) {
        print_triple(out, step->node->kernel);
        print_triple(out, step->node->stride);
        print_triple(out, step->node->dilation);
        print_triple(out, step->node->pad_begin);
        fprintf(out, " %zu", (size_t)step->node->groups);
    }
    for (size_t i = 0; i < step->n_chain; i++)
        fprintf(out, "; %d %d", (int)step->chain[i].op, step->chain[i].tensor);
    fputc('\n', out);
}

static dm_status plan_checksum(const plan *p, char checksum[17], dm_error *err)
{
    text_stream stream;
    size_t size = 0;
    if (text_stream_open(&stream)) {
        for (size_t i = 0; i < p->n_tensors; i++)
            print_tensor(stream.out, &p->tensors[i]);
        for (size_t i = 0; i < p->n_steps; i++)
            print_step(stream.out, &p->steps[i]);
    }
    char *text = text_stream_close(&stream, true, &size);
    if (!text)
        return error_memory(err, p->n_steps * sizeof *p->steps, "the name of a file");
    bytes_checksum(text, size, checksum);
    dm_string_free(text);
    return DM_OK;
}

/* ---- All of it ------------------------------------------------------------------------------ */

static const char *precision_of(const cuda_state *s)
{
    switch (s->plan->options.type) {
    case ELEMENT_BF16:
        return "bf16";
    case ELEMENT_F16:
        return "fp16";
    default:
        return s->tf32 ? "tf32" : "float32";
    }
}

dm_status tuning_key_of(const cuda_state *s, unsigned batch, tuning_key *key, dm_error *err)
{
    const struct {
        enum cudaDeviceAttr attribute;
        int *value;
    } asked[] = {{cudaDevAttrComputeCapabilityMajor, &key->capability[0]},
                 {cudaDevAttrComputeCapabilityMinor, &key->capability[1]},
                 {cudaDevAttrMultiProcessorCount, &key->multiprocessors}};
    *key = (tuning_key){.batch = batch};
    cudaError_t code = cudaDriverGetVersion(&key->driver);
    for (size_t i = 0; i < sizeof asked / sizeof *asked && code == cudaSuccess; i++)
        code = cudaDeviceGetAttribute(asked[i].value, asked[i].attribute, s->device);
    if (code != cudaSuccess)
        return device_check(code, "asking for a device's properties", err);
    snprintf(key->library, sizeof key->library, "%s", convolution_library_name(s->library));
    snprintf(key->device, sizeof key->device, "%s", s->device_name);
    snprintf(key->precision, sizeof key->precision, "%s", precision_of(s));
    memcpy(key->tile, s->plan->tensors[s->plan->input].dim, sizeof key->tile);
    find_build(key->build, sizeof key->build);
    return plan_checksum(s->plan, key->network, err);
}
