/* SPDX-License-Identifier: Apache-2.0 */
/* Commands and their options as tables: one table is parsed, printed by --help and turned into
 * shell completion. */
#ifndef DOSEMAP_CLI_OPTIONS_H
#define DOSEMAP_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#define EXIT_DONE 0
#define EXIT_FAILED 1
#define EXIT_USAGE 2

typedef enum option_kind {
    OPTION_FLAG,     /* bool */
    OPTION_STRING,   /* const char * */
    OPTION_FILE,     /* const char *, completed as a file name */
    OPTION_NUMBER,   /* double, within [minimum, maximum] */
    OPTION_COUNT,    /* unsigned, within [minimum, maximum] */
    OPTION_CHOICE,   /* int: the place in `choices` */
    OPTION_FILE_LIST /* string_list, may be given again */
} option_kind;

typedef struct string_list {
    const char **items;
    size_t count;
} string_list;

typedef struct option_spec {
    const char *name; /* long name without dashes; NULL ends a table */
    char letter;      /* short name, or 0 */
    option_kind kind;
    size_t offset;        /* of the field in the command's options struct */
    const char *argument; /* as in "KG"; for choices "gaussian|constant" */
    const char *help;
    double minimum, maximum;
    const char *group; /* heading in --help before this option, or NULL */
} option_spec;

typedef struct command {
    const char *name;
    const char *synopsis; /* behind "dosemap NAME " */
    const char *summary;  /* one line */
    const char *details;  /* paragraphs for --help */
    const option_spec *options;
    int (*run)(int argc, char **argv);
} command;

extern const command *const commands[]; /* NULL-terminated */

/* Parses argv[1..] into `values` (a struct that the specs' offsets point into) and collects the
 * operands. Returns -1 to go on, or an exit status: EXIT_DONE after --help, EXIT_USAGE after a
 * message. The operands' array is released with free(). */
int options_parse(const command *cmd, int argc, char **argv, void *values, string_list *operands);

void command_help(const command *cmd);
/* "dosemap NAME: MESSAGE" and a hint at --help on stderr; returns EXIT_USAGE. */
int usage_error(const command *cmd, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Splits the choices "a|b|c": the place of `text`, or -1. */
int choice_index(const char *choices, const char *text);

/* The words with blanks between them, for records; free(). NULL when memory is short. */
char *command_line(int argc, char **argv);

/* Whole numeric strings only. */
bool parse_number(const char *text, double *value);

#endif
