/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/options.h"

#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 64
#define HELP_COLUMN 30
#define HELP_WIDTH 98
#define LONG_BASE 1000 /* getopt_long's value of option i is LONG_BASE + i */

int usage_error(const command *cmd, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "dosemap %s: ", cmd->name);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\nTry 'dosemap %s --help'.\n", cmd->name);
    va_end(args);
    return EXIT_USAGE;
}

bool parse_number(const char *text, double *value)
{
    char *end = NULL;
    if (!*text)
        return false;
    *value = strtod(text, &end);
    return *end == '\0' && !isnan(*value);
}

int choice_index(const char *choices, const char *text)
{
    size_t length = strlen(text);
    int index = 0;
    for (const char *p = choices; length > 0; index++) {
        size_t n = strcspn(p, "|");
        if (n == length && strncmp(p, text, n) == 0)
            return index;
        if (p[n] == '\0')
            break;
        p += n + 1;
    }
    return -1;
}

char *command_line(int argc, char **argv)
{
    size_t size = 1, used = 0;
    for (int i = 0; i < argc; i++)
        size += strlen(argv[i]) + 1;
    char *line = calloc(size, 1);
    for (int i = 0; line && i < argc; i++)
        used += (size_t)snprintf(line + used, size - used, "%s%s", i ? " " : "", argv[i]);
    return line;
}

static int list_append(string_list *list, const char *item)
{
    const char **items = realloc(list->items, (list->count + 1) * sizeof *items);
    if (!items)
        return -1;
    list->items = items;
    items[list->count++] = item;
    return 0;
}

static int store_number(const command *cmd, const option_spec *spec, const char *text, void *field)
{
    double value = 0;
    if (!parse_number(text, &value) || value < spec->minimum || value > spec->maximum)
        return usage_error(cmd, "--%s %s wants a number from %g to %g, not '%s'", spec->name,
                           spec->argument, spec->minimum, spec->maximum, text);
    if (spec->kind == OPTION_NUMBER) {
        *(double *)field = value;
        return -1;
    }
    if (value != floor(value))
        return usage_error(cmd, "--%s wants a whole number, not '%s'", spec->name, text);
    *(unsigned *)field = (unsigned)value;
    return -1;
}

static int store(const command *cmd, const option_spec *spec, const char *text, void *values)
{
    void *field = (char *)values + spec->offset;
    switch (spec->kind) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return -1;
    case OPTION_STRING:
    case OPTION_FILE:
        *(const char **)field = text;
        return -1;
    case OPTION_NUMBER:
    case OPTION_COUNT:
        return store_number(cmd, spec, text, field);
    case OPTION_CHOICE: {
        int index = choice_index(spec->argument, text);
        if (index < 0)
            return usage_error(cmd, "--%s is one of %s, not '%s'", spec->name, spec->argument,
                               text);
        *(int *)field = index;
        return -1;
    }
    case OPTION_FILE_LIST:
        if (list_append(field, text) == 0)
            return -1;
        fprintf(stderr, "dosemap %s: out of memory\n", cmd->name);
        return EXIT_FAILED;
    }
    return -1;
}

static size_t make_getopt_tables(const command *cmd, struct option *longs, char *shorts)
{
    size_t n = 0, s = 0;
    for (; n < MAX_OPTIONS && cmd->options[n].name; n++) {
        const option_spec *spec = &cmd->options[n];
        int has_argument = spec->kind == OPTION_FLAG ? no_argument : required_argument;
        longs[n] = (struct option){spec->name, has_argument, NULL, LONG_BASE + (int)n};
        if (spec->letter) {
            shorts[s++] = spec->letter;
            if (has_argument)
                shorts[s++] = ':';
        }
    }
    longs[n] = (struct option){"help", no_argument, NULL, 'h'};
    shorts[s++] = 'h';
    shorts[s] = '\0';
    return n;
}

int options_parse(const command *cmd, int argc, char **argv, void *values, string_list *operands)
{
    struct option longs[MAX_OPTIONS + 2];
    char shorts[2 * MAX_OPTIONS + 2], program[64];
    memset(longs, 0, sizeof longs);
    size_t n = make_getopt_tables(cmd, longs, shorts);

    snprintf(program, sizeof program, "dosemap %s", cmd->name);
    argv[0] = program; /* getopt's own messages begin with it */
    optind = 1;
    *operands = (string_list){0};
    for (int c; (c = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (c == 'h') {
            command_help(cmd);
            return EXIT_DONE;
        }
        if (c == '?') {
            fprintf(stderr, "Try 'dosemap %s --help'.\n", cmd->name);
            return EXIT_USAGE;
        }
        size_t i = 0;
        for (; i < n; i++)
            if (c == LONG_BASE + (int)i || c == cmd->options[i].letter)
                break;
        int status = store(cmd, &cmd->options[i], optarg, values);
        if (status >= 0)
            return status;
    }
    for (int i = optind; i < argc; i++)
        if (list_append(operands, argv[i]) != 0) {
            fprintf(stderr, "%s: out of memory\n", program);
            return EXIT_FAILED;
        }
    return -1;
}

/* Words of `text` filled between `column` and HELP_WIDTH; the first line is already at `at`. */
static void print_filled(const char *text, int at, int column)
{
    for (const char *word = text; *word;) {
        int n = (int)strcspn(word, " ");
        if (at + n + 1 > HELP_WIDTH && at > column) {
            printf("\n%*s", column, "");
            at = column;
        }
        at += printf("%s%.*s", at > column ? " " : "", n, word);
        word += n + (word[n] == ' ');
    }
    putchar('\n');
}

static void print_option(const option_spec *spec)
{
    if (spec->group)
        printf("\n%s:\n", spec->group);
    int at = spec->letter ? printf("  -%c, ", spec->letter) : printf("      ");
    at += printf("--%s", spec->name);
    if (spec->argument)
        at += printf(" %s", spec->argument);
    if (at + 2 > HELP_COLUMN) {
        putchar('\n');
        at = 0;
    }
    printf("%*s", HELP_COLUMN - at, "");
    print_filled(spec->help, HELP_COLUMN, HELP_COLUMN);
}

void command_help(const command *cmd)
{
    printf("Usage: dosemap %s %s\n\n", cmd->name, cmd->synopsis);
    print_filled(cmd->summary, 0, 0);
    if (cmd->details) {
        putchar('\n');
        print_filled(cmd->details, 0, 0);
    }
    if (!cmd->options->group)
        printf("\nOptions:\n");
    for (const option_spec *spec = cmd->options; spec->name; spec++)
        print_option(spec);
    printf("  -h, --help%*sshow this text\n", HELP_COLUMN - 12, "");
}
