/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation, or every call to the file system, of whole jobs fails once in turn.
 *
 *     test_faults memory|files [--every K] [--all-callers] [SCENARIO [N]]
 *
 * A run whose n-th call fails must end in one of two ways: with the result of a run without
 * failures, byte for byte, or with an error of the right kind that says what happened. In both
 * cases no memory, no open file and no partial or new output may be left. Interrupted and short
 * reads and writes must not show at all. The next run, which gets one call further, shows that
 * nothing was broken for good. With N only that call fails and what it was is printed. --every K takes each
 * Kth call only, in all scenarios but the first; those of the command line, which do the same work
 * as the library's, take each 5th of these.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>
#include <xxhash.h>

#include "base/output_file.h"
#include "fault_points.h"
#include "fault_scenarios.h"

/* ---- What lies in out/ ---------------------------------------------------------------------- */

enum { MAX_FILES = 32 };

typedef struct file_state {
    char path[256];
    uint64_t content, exact; /* without what differs from run to run, and of all bytes */
} file_state;

typedef struct folder_state {
    size_t count;
    file_state files[MAX_FILES];
} folder_state;

/* A sidecar without its times, the memory that was free, and the memory needed: less for a PET of a
 * cohort that a shortage left alone. */
static uint64_t sidecar_hash(const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    json_object_del(root, "Seconds");
    json_object_del(json_object_get(root, "Options"), "MemoryLimit");
    json_object_del(json_object_get(root, "Options"), "MemoryNeeded");
    char *text = json_dumps(root, JSON_COMPACT);
    uint64_t hash = text ? XXH64(text, strlen(text), 0) : 1;
    free(text);
    json_decref(root);
    return hash;
}

static void look_into(const char *folder, folder_state *state)
{
    struct dirent *entry;
    DIR *dir = opendir(folder);
    while (dir && (entry = readdir(dir))) {
        char path[256], hex[17] = "0";
        struct stat info;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (snprintf(path, sizeof path, "%s/%s", folder, entry->d_name) >= (int)sizeof path ||
            lstat(path, &info) != 0 || state->count == MAX_FILES)
            abort();
        if (S_ISDIR(info.st_mode)) {
            look_into(path, state);
            continue;
        }
        file_state *file = &state->files[state->count++];
        snprintf(file->path, sizeof file->path, "%s", path);
        file_checksum(path, hex, NULL);
        file->exact = strtoull(hex, NULL, 16);
        size_t n = strlen(path);
        file->content =
            n > 5 && strcmp(path + n - 5, ".json") == 0 ? sidecar_hash(path) : file->exact;
    }
    closedir(dir);
}

static const file_state *find_file(const folder_state *state, const char *path)
{
    for (size_t i = 0; i < state->count; i++)
        if (strcmp(state->files[i].path, path) == 0)
            return &state->files[i];
    return NULL;
}

static bool same_content(const folder_state *a, const folder_state *b)
{
    bool same = a->count == b->count;
    for (size_t i = 0; same && i < a->count; i++) {
        const file_state *other = find_file(b, a->files[i].path);
        same = other && other->content == a->files[i].content;
    }
    return same;
}

static void empty_folder(const char *folder)
{
    struct dirent *entry;
    DIR *dir = opendir(folder);
    while (dir && (entry = readdir(dir))) {
        char path[256];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (snprintf(path, sizeof path, "%s/%s", folder, entry->d_name) >= (int)sizeof path)
            abort();
        if (unlink(path) != 0) {
            empty_folder(path);
            if (rmdir(path) != 0)
                abort();
        }
    }
    closedir(dir);
}

/* ---- One run -------------------------------------------------------------------------------- */

typedef struct run_result {
    scenario_outcome outcome;
    fault_record fault;
    size_t points, lost, open_before, open_after;
} run_result;

static struct {
    const char *scenario;
    size_t point;
} now_running;

static void run_once(const scenario *s, fault_kind kind, size_t n, run_result *result)
{
    memset(result, 0, sizeof *result);
    result->open_before = fault_open_files();
    now_running.scenario = s->name;
    now_running.point = n;
    if (s->command_line)
        scenario_capture();
    fault_arm(kind, n);
    s->run(&result->outcome);
    result->points = fault_disarm(&result->fault);
    if (s->command_line)
        scenario_release(&result->outcome);
    result->lost = fault_live_allocations(0);
    result->open_after = fault_open_files();
}

static void prepare_folder(const scenario *s)
{
    empty_folder("out");
    if (s->run_before) {
        scenario_outcome outcome = {0};
        if (s->command_line)
            scenario_capture();
        s->run_before(&outcome);
        if (s->command_line)
            scenario_release(&outcome);
        if (!outcome.done) {
            fprintf(stderr, "%s: cannot be prepared: %s\n", s->name, outcome.text);
            exit(1);
        }
    }
}

/* The process that oneDNN, say, ends. */
static void on_crash(int number)
{
    char line[256];
    fault_record fault;
    fault_disarm(&fault);
    int n = snprintf(line, sizeof line, "signal %d in \"%s\" after call %zu failed (%s)\n", number,
                     now_running.scenario, now_running.point,
                     fault.happened ? fault.function : "not yet");
    if (write(STDERR_FILENO, line, (size_t)n) < 0)
        _exit(3);
    signal(number, SIG_DFL);
    raise(number);
}

/* ---- Checks --------------------------------------------------------------------------------- */

typedef struct reference {
    folder_state before, after;
    uint64_t text_hash;
} reference;

/* The name of the file that the failed call was about, without what makes it a partial one. */
static void affected_name(const fault_record *fault, char name[FAULT_PATH])
{
    const char *slash = strrchr(fault->path, '/');
    const char *from = slash && slash[1] ? slash + 1 : fault->path;
    char own_part[32];
    snprintf(own_part, sizeof own_part, ".%ld", (long)getpid());
    const char *end = *from == '.' ? strstr(from, own_part) : NULL;
    if (end)
        from++;
    snprintf(name, FAULT_PATH, "%.*s", end ? (int)(end - from) : (int)strlen(from), from);
}

static const char *check_error(const scenario *s, fault_kind kind, const run_result *r)
{
    char name[FAULT_PATH];
    const scenario_outcome *o = &r->outcome;
    if (kind == FAULT_IO_AGAIN || kind == FAULT_IO_SHORT)
        return "a short or interrupted call is no error";
    if (kind == FAULT_ALLOCATION) {
        if (strcmp(r->fault.function, "pthread_create") == 0)
            return strstr(o->text, "thread") ? NULL : "the message does not say thread";
        if (!s->command_line && o->status != DM_ERROR_MEMORY)
            return "the status is not DM_ERROR_MEMORY";
        return strstr(o->text, "memory") ? NULL : "the message does not say memory";
    }
    if (!s->command_line && o->status != DM_ERROR_IO)
        return "the status is not DM_ERROR_IO";
    affected_name(&r->fault, name);
    return strstr(s->command_line ? o->text : o->where, name) ? NULL
                                                              : "the message names another file";
}

/* What a failed run may leave: files as they were before, where the job's outputs do not belong
 * together also finished ones. */
static const char *check_left(const scenario *s, const reference *ref, const folder_state *left)
{
    const file_state *sidecar = find_file(left, "out/dose.json");
    const file_state *dose = find_file(left, "out/dose.nii.gz");
    for (size_t i = 0; i < left->count; i++) {
        const file_state *file = &left->files[i];
        const file_state *old = find_file(&ref->before, file->path);
        const file_state *new = find_file(&ref->after, file->path);
        bool is_old = old && old->exact == file->exact;
        if (strstr(file->path, ".partial"))
            return "a partial file is left";
        if (!is_old && (s->all_or_nothing || !new || new->content != file->content))
            return "an output of the failed run is left";
    }
    return s->all_or_nothing && sidecar && !dose ? "a sidecar is left without its dose map" : NULL;
}

void __lsan_do_leak_check(void) __attribute__((weak));

/* The address sanitizer looks for leaks itself, at the end; and some of what its own allocator frees
 * does not pass by our free. */
static bool counts_live(void)
{
    return !__lsan_do_leak_check;
}

static const char *check_run(const scenario *s, fault_kind kind, const reference *ref,
                             const run_result *r)
{
    folder_state left = {0};
    look_into("out", &left);
    if (r->lost && !r->outcome.ended && counts_live())
        return "memory is not freed";
    if (r->open_after != r->open_before && !r->outcome.ended)
        return "a file is not closed";
    if (!r->outcome.done) {
        const char *wrong = check_error(s, kind, r);
        return wrong ? wrong : check_left(s, ref, &left);
    }
    if (s->reports_files && kind != FAULT_ALLOCATION)
        return NULL;
    if (r->outcome.text_hash != ref->text_hash && !s->may_do_again)
        return "it succeeded, but with another text";
    return same_content(&left, &ref->after) ? NULL : "it succeeded, but with other files";
}

static void print_run(const char *title, const scenario *s, size_t n, const run_result *r)
{
    char address[256];
    fprintf(stderr, "%s: \"%s\", call %zu: %s(%s) from %s: %s\n", title, s->name, n,
            r->fault.function ? r->fault.function : "none", r->fault.path,
            fault_address(r->fault.caller, address, sizeof address),
            r->outcome.done ? "succeeded" : r->outcome.text);
}

/* ---- All calls of a scenario ---------------------------------------------------------------- */

typedef struct tally {
    size_t scenarios, points, errors, wrong;
} tally;

static void make_reference(const scenario *s, reference *ref)
{
    static run_result r;
    /* Twice: some things are made once and kept. */
    for (int i = 0; i < 2; i++) {
        prepare_folder(s);
        memset(ref, 0, sizeof *ref);
        look_into("out", &ref->before);
        run_once(s, FAULT_NONE, 0, &r);
        look_into("out", &ref->after);
        ref->text_hash = r.outcome.text_hash;
        if (!r.outcome.done) {
            fprintf(stderr, "%s: fails by itself: %s\n", s->name, r.outcome.text);
            exit(1);
        }
    }
}

static bool try_point(const scenario *s, fault_kind kind, reference *ref, size_t n, tally *sum)
{
    enum { SHOWN = 40 };
    static run_result r;
    if (s->run_before) {
        prepare_folder(s);
        memset(&ref->before, 0, sizeof ref->before);
        look_into("out", &ref->before);
    } else {
        empty_folder("out");
    }
    run_once(s, kind, n, &r);
    const char *wrong = check_run(s, kind, ref, &r);
    if (wrong && sum->wrong++ < SHOWN) {
        print_run(wrong, s, n, &r);
        fault_live_allocations(r.lost ? 3 : 0);
    }
    sum->points += r.fault.happened;
    sum->errors += r.fault.happened && !r.outcome.done;
    return r.fault.happened;
}

static void run_scenario(const scenario *s, fault_kind first, fault_kind last, size_t every,
                         tally *all)
{
    static reference ref;
    tally sum = {0};
    make_reference(s, &ref);
    for (fault_kind kind = first; kind <= last; kind++)
        for (size_t n = 1; try_point(s, kind, &ref, n, &sum);)
            n += s->command_line ? 5 * every : every;
    printf("%-45s %6zu failures, %6zu of them errors\n", s->name, sum.points, sum.errors);
    fflush(stdout);
    all->scenarios++;
    all->points += sum.points;
    all->errors += sum.errors;
    all->wrong += sum.wrong;
}

static void run_single(const scenario *s, fault_kind kind, size_t n)
{
    static reference ref;
    static run_result r;
    make_reference(s, &ref);
    prepare_folder(s);
    memset(&ref.before, 0, sizeof ref.before);
    look_into("out", &ref.before);
    run_once(s, kind, n, &r);
    const char *wrong = check_run(s, kind, &ref, &r);
    print_run(wrong ? wrong : "as it should be", s, n, &r);
    fprintf(stderr, "%zu calls were counted\n", r.points);
    fault_live_allocations(10);
}

/* What glibc itself loses when memory is short while it loads a library for its own use. */
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:_dl_map_object_deps\n";
}

typedef struct arguments {
    bool memory, all_callers;
    size_t every, point;
    const char *scenario;
} arguments;

static bool parse(int argc, char **argv, arguments *args)
{
    *args = (arguments){.every = 1};
    if (argc < 2 || (strcmp(argv[1], "memory") != 0 && strcmp(argv[1], "files") != 0))
        return false;
    args->memory = strcmp(argv[1], "memory") == 0;
    int i = 2;
    if (i + 1 < argc && strcmp(argv[i], "--every") == 0) {
        args->every = strtoul(argv[i + 1], NULL, 10);
        i += 2;
    }
    if (i < argc && strcmp(argv[i], "--all-callers") == 0) {
        args->all_callers = true;
        i++;
    }
    if (i < argc)
        args->scenario = argv[i++];
    if (i < argc)
        args->point = strtoul(argv[i++], NULL, 10);
    return i == argc && args->every > 0;
}

static void run_all(const arguments *args, tally *all)
{
    fault_kind first = args->memory ? FAULT_ALLOCATION : FAULT_IO;
    fault_kind last = args->memory ? FAULT_ALLOCATION : FAULT_IO_AGAIN;
    for (const scenario *s = scenarios; s->name; s++) {
        if ((args->scenario && strcmp(args->scenario, s->name) != 0) ||
            (args->memory && s->files_only))
            continue;
        if (args->point > 0)
            run_single(s, first, args->point);
        else
            run_scenario(s, first, last, s == scenarios ? 1 : args->every, all);
    }
}

int main(int argc, char **argv)
{
    char folder[64] = "/tmp/dosemap-faults-XXXXXX";
    arguments args;
    tally all = {0};
    if (!parse(argc, argv, &args)) {
        fprintf(stderr, "usage: test_faults memory|files [--every K] [--all-callers] "
                        "[SCENARIO [N]]\n");
        return 2;
    }
    /* Without oneDNN's cache of what it made before, each run makes everything. */
    if (setenv("DNNL_PRIMITIVE_CACHE_CAPACITY", "0", 1) != 0 ||
        setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0", 1) != 0 || !mkdtemp(folder) ||
        chdir(folder) != 0) {
        perror(folder);
        return 1;
    }
    signal(SIGABRT, on_crash);
    fault_init(args.all_callers);
    scenarios_make_inputs();
    run_all(&args, &all);
    empty_folder(folder);
    if (chdir("/") != 0 || rmdir(folder) != 0)
        return 1;
    printf("%zu scenarios, %zu failures, %zu of them errors, %zu handled wrongly\n", all.scenarios,
           all.points, all.errors, all.wrong);
    return all.wrong > 0;
}
