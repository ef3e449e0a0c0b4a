/* SPDX-License-Identifier: Apache-2.0 */
/* A device's account as text and JSON. */
#include <stdlib.h>

#include "base/json_text.h"
#include "model/describe.h"

void plan_account_clear(plan_account *account)
{
    free(account->rows);
    account->rows = NULL;
    account->n_rows = 0;
}

/* FLOP for each byte that the launches move. */
static double intensity(const account_sum *sum)
{
    double bytes = account_bytes(sum);
    return bytes > 0 ? sum->flop / bytes : 0;
}

/* ---- Text ----------------------------------------------------------------------------------- */

static void row_text(const plan_account_row *row, size_t r, text_table *t)
{
    const account_sum *s = &row->sum;
    table_cell(t, r, 0, "%zu", r + 1);
    table_cell(t, r, 1, "%s", row->name);
    table_cell(t, r, 2, "%s", row->way);
    table_cell(t, r, 3, "%u", row->samples);
    table_cell(t, r, 4, "%.0f", s->launches * row->samples);
    table_cell(t, r, 5, "%.0f", 1e-3 * s->read);
    table_cell(t, r, 6, "%.0f", 1e-3 * s->written);
    table_cell(t, r, 7, "%.0f", 1e-3 * (s->weights + s->workspace));
    if (s->flop > 0)
        table_cell(t, r, 8, "%.1f", 1e-6 * s->flop);
    if (s->flop > 0)
        table_cell(t, r, 9, "%.0f", intensity(s));
}

static void print_sums(const plan_account *a, FILE *out)
{
    const account_sum *s = &a->total;
    fputc('\n', out);
    describe_line(out, "memory",
                  "%.1f MB per window: %.1f MB read, %.1f MB written, %.1f MB of weights and "
                  "tables, %.1f MB of workspace",
                  1e-6 * account_bytes(s), 1e-6 * s->read, 1e-6 * s->written, 1e-6 * s->weights,
                  1e-6 * s->workspace);
    describe_line(out, "arithmetic", "%.2f GFLOP per window, %.0f FLOP for each byte",
                  1e-9 * s->flop, intensity(s));
    describe_line(out, "launches", "%.1f per window", s->launches);
    describe_line(out, "",
                  "kB and MFLOP are of one window; each operand of a launch counts once, whatever "
                  "caches do. \"windows\" are computed at once, in so many calls (launches), and "
                  "share weights, tables and workspace (kB shared).");
}

bool account_text(const plan_account *a, FILE *out)
{
    static const table_column columns[] = {{"", true, false},        {"operation", false, true},
                                           {"by", false, true},      {"windows", true, false},
                                           {"calls", true, false},   {"kB read", true, false},
                                           {"written", true, false}, {"shared", true, false},
                                           {"MFLOP", true, false},   {"FLOP/B", true, false}};
    char title[512];
    text_table *t = table_create(columns, sizeof columns / sizeof *columns, a->n_rows);
    snprintf(title, sizeof title, "Account of %s%s, batches of %u window%s", a->device,
             a->emulated    ? " (emulated)"
             : a->described ? " (not here)"
                            : "",
             a->batch, a->batch == 1 ? "" : "s");
    describe_heading(out, title);
    if (a->library[0])
        describe_line(out, "convolutions",
                      "%s%zu by plans of %s, of which %zu add bias, residual or activation at once",
                      a->tuned ? "tuned; " : "", a->library_plans, a->library, a->joined_plans);
    else
        describe_line(out, "convolutions", "all by own kernels");
    fputc('\n', out);
    for (size_t r = 0; t && r < a->n_rows; r++)
        row_text(&a->rows[r], r, t);
    if (t)
        table_print(t, out);
    table_free(t);
    print_sums(a, out);
    return t != NULL;
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void put_sum(json_t **object, const account_sum *s)
{
    json_put(object, "launches", json_real(s->launches));
    json_put(object, "bytes", json_real(account_bytes(s)));
    json_put(object, "bytes_read", json_real(s->read));
    json_put(object, "bytes_written", json_real(s->written));
    json_put(object, "weight_bytes", json_real(s->weights));
    json_put(object, "workspace_bytes", json_real(s->workspace));
    json_put(object, "flop", json_real(s->flop));
    json_put(object, "flop_per_byte", json_real(intensity(s)));
}

json_t *account_json(const plan_account *a)
{
    json_t *report = json_object(), *rows = json_array();
    json_put(&report, "device", json_string_or_null(a->device));
    json_put(&report, "present", json_boolean(!a->described));
    json_put(&report, "emulated", json_boolean(a->emulated));
    json_put(&report, "library", a->library[0] ? json_string(a->library) : json_null());
    json_put(&report, "tuned", json_boolean(a->tuned));
    json_put(&report, "library_plans", json_integer((json_int_t)a->library_plans));
    json_put(&report, "joined_plans", json_integer((json_int_t)a->joined_plans));
    json_put(&report, "batch", json_integer(a->batch));
    json_put(&report, "per", json_string("window"));
    put_sum(&report, &a->total);
    for (size_t r = 0; r < a->n_rows; r++) {
        const plan_account_row *row = &a->rows[r];
        json_t *item = json_object();
        json_put(&item, "name", json_string_or_null(row->name));
        json_put(&item, "way", json_string_or_null(row->way));
        json_put(&item, "windows", json_integer(row->samples));
        put_sum(&item, &row->sum);
        json_push(&rows, item);
    }
    json_put(&report, "operations", rows);
    return report;
}
