/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench_report.h"

#include <jansson.h>
#include <math.h>

/* ---- Values --------------------------------------------------------------------------------- */

static const json_t *get(const json_t *object, const char *key)
{
    return json_object_get(object, key);
}

/* NAN where there is none. */
static double number(const json_t *object, const char *key)
{
    const json_t *value = get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static const char *text(const json_t *object, const char *key)
{
    const char *value = json_string_value(get(object, key));
    return value ? value : "unknown";
}

static long long count(const json_t *object, const char *key)
{
    return (long long)json_integer_value(get(object, key));
}

/* A title and its value in the unit that suits its size: "12.3 ms"; nothing for NAN. */
static void print_scaled(FILE *out, const char *before, double value, const char *unit)
{
    static const struct {
        double size;
        const char *letter;
    } prefix[] = {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}, {1, ""}, {1e-3, "m"}, {0, "u"}};
    size_t i = 0;
    if (isnan(value))
        return;
    while (value > 0 && value < prefix[i].size)
        i++;
    double size = value <= 0 ? 1 : prefix[i].size > 0 ? prefix[i].size : 1e-6;
    fprintf(out, "%s%.3g %s%s", before, value / size, value <= 0 ? "" : prefix[i].letter, unit);
}

static void print_share(FILE *out, double share, const char *of)
{
    if (!isnan(share))
        fprintf(out, ", %.0f %% of %s", 100 * share, of);
}

static const char *plural(long long n)
{
    return n == 1 ? "" : "s";
}

/* ---- Sections ------------------------------------------------------------------------------- */

static void print_settings(FILE *out, const json_t *root)
{
    const json_t *settings = get(root, "settings"), *tile = get(settings, "tile");
    if (json_is_true(get(root, "emulated")))
        fprintf(out, "The device is emulated on the CPU, for tests: these times mean nothing.\n");
    fprintf(out, "device       %s\n", text(get(root, "environment"), "device"));
    fprintf(out, "network      %s, %s, windows of %lld x %lld x %lld, overlap %g, ",
            text(get(settings, "model"), "name"), text(settings, "precision"),
            (long long)json_integer_value(json_array_get(tile, 0)),
            (long long)json_integer_value(json_array_get(tile, 1)),
            (long long)json_integer_value(json_array_get(tile, 2)), number(settings, "overlap"));
    fprintf(out, "%lld thread%s\n", count(settings, "threads"), plural(count(settings, "threads")));
}

static void print_ceilings(FILE *out, const json_t *ceilings)
{
    print_scaled(out, "ceilings     copy ", number(ceilings, "copy_bytes_per_s"), "B/s");
    print_scaled(out, ", multiply-add ", number(ceilings, "multiply_add_flop_per_s"), "FLOP/s");
    print_scaled(out, ", matrix product ", number(ceilings, "product_flop_per_s"), "FLOP/s");
    print_scaled(out, ", by own kernel ", number(ceilings, "own_product_flop_per_s"), "FLOP/s");
    fputc('\n', out);
}

static void print_rates(FILE *out, const json_t *part)
{
    fprintf(out, "%.4g windows/s", number(part, "patches_per_s"));
    print_scaled(out, ", ", 1e12 * number(part, "tflop_per_s"), "FLOP/s");
    print_share(out, number(part, "share_of_multiply_add"), "multiply-add");
    print_share(out, number(part, "share_of_product"), "matrix product");
    print_share(out, number(part, "share_of_copy"), "copy");
}

static void print_offline(FILE *out, const json_t *part)
{
    if (!json_is_object(part))
        return;
    fprintf(out, "offline      ");
    print_rates(out, part);
    long long runs = (long long)json_array_size(get(part, "seconds"));
    fprintf(out, "\n             batch %lld, %lld at once, %lld run%s", count(part, "batch"),
            count(part, "at_once"), runs, plural(runs));
    print_scaled(out, ", ", number(part, "joules_per_patch"), "J/window");
    fputc('\n', out);
}

static void print_single(FILE *out, const json_t *part)
{
    const json_t *latency = get(part, "latency");
    if (!json_is_object(part))
        return;
    print_scaled(out, "one window   ", number(latency, "p50"), "s");
    print_scaled(out, " (median), 90 % within ", number(latency, "p90"), "s");
    print_scaled(out, ", 99 % within ", number(latency, "p99"), "s");
    fprintf(out, "; %lld run%s\n", count(part, "runs"), plural(count(part, "runs")));
}

static void print_volume(FILE *out, const json_t *part)
{
    const json_t *size = get(part, "size"), *value;
    const char *name, *comma = "             ";
    if (!json_is_object(part))
        return;
    print_scaled(out, "volume       ", number(part, "median"), "s");
    print_scaled(out, " (least ", number(part, "minimum"), "s)");
    fprintf(out, " for %lld x %lld x %lld voxels in %lld window%s, %lld of air skipped",
            (long long)json_integer_value(json_array_get(size, 0)),
            (long long)json_integer_value(json_array_get(size, 1)),
            (long long)json_integer_value(json_array_get(size, 2)), count(part, "windows"),
            plural(count(part, "windows")), count(part, "windows_skipped"));
    fprintf(out, "\n             ");
    print_rates(out, part);
    print_scaled(out, ", ", number(part, "joules"), "J");
    fputc('\n', out);
    json_object_foreach((json_t *)(size_t)get(part, "stages"), name, value)
    {
        if (json_is_number(value)) {
            fprintf(out, "%s%s", comma, name);
            print_scaled(out, " ", json_number_value(value), "s");
            comma = ", ";
        }
    }
    fprintf(out, "\noutput       XXH64 %s%s\n", text(part, "output_xxh64"),
            json_is_true(get(part, "same_bytes")) ? "" : ", NOT THE SAME IN EVERY RUN");
}

static void print_layers(FILE *out, const json_t *layers, double total)
{
    size_t i;
    json_t *layer;
    if (!json_is_array(layers))
        return;
    fprintf(out, "\n%10s %8s %8s %9s %9s %9s\n", "", "% of", "", "", "% of", "% of");
    fprintf(out, "%10s %8s %8s %9s %9s %9s  %s\n", "us/window", "time", "GB/s", "GFLOP/s", "copy",
            "product", "step, kernel");
    json_array_foreach(layers, i, layer)
    {
        double seconds = number(layer, "seconds");
        fprintf(out, "%10.1f %8.1f %8.1f %9.1f %9.1f %9.1f  %s, %s\n", 1e6 * seconds,
                100 * seconds / total, 1e-9 * number(layer, "bytes_per_s"),
                1e-9 * number(layer, "flop_per_s"), 100 * number(layer, "share_of_copy"),
                100 * number(layer, "share_of_product"), text(layer, "name"), text(layer, "way"));
    }
    fprintf(out, "%10.1f in all\n", 1e6 * total);
}

static void print_rest(FILE *out, const json_t *root)
{
    const json_t *error = get(root, "error"), *memory = get(root, "memory");
    if (json_is_string(get(error, "reason")))
        fprintf(out, "error        not known: %s\n", text(error, "reason"));
    else
        fprintf(out,
                "error        %.2e relative L2, at most %.2e of the largest value\n"
                "             %lld window%s against %s\n",
                number(error, "relative_l2"), number(error, "largest"), count(error, "windows"),
                plural(count(error, "windows")), text(error, "reference"));
    print_scaled(out, "memory       ", number(memory, "host_peak_bytes"), "B at most");
    print_scaled(out, ", of the device ", number(memory, "device_bytes"), "B");
    fputc('\n', out);
    if (json_is_string(get(get(root, "tuning"), "File")))
        fprintf(out, "convolutions as chosen in %s (XXH64 %s)\n", text(get(root, "tuning"), "File"),
                text(get(root, "tuning"), "XXH64"));
}

void bench_report(FILE *out, const char *json)
{
    json_t *root = json_loads(json, 0, NULL);
    print_settings(out, root);
    print_ceilings(out, get(root, "ceilings"));
    print_offline(out, get(root, "offline"));
    print_single(out, get(root, "single_stream"));
    print_volume(out, get(root, "volume"));
    print_rest(out, root);
    print_layers(out, get(root, "layers"), number(root, "layers_seconds"));
    json_decref(root);
}
