/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap COMMAND ...: the table of commands, and `dosemap-COMMAND` from PATH for any other. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/json_work.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "dosemap.h"

const command *const commands[] = {
    &command_predict, &command_dvh,    &command_inspect,    &command_forward,
    &command_bench,   &command_doctor, &command_completion, NULL};

static void print_help(FILE *out)
{
    fprintf(
        out,
        "Usage: dosemap COMMAND [options] inputs...\n\n"
        "Voxel-wise absorbed-dose maps of 177Lu-PSMA therapy, predicted from the PET before it.\n"
        "For research; not for clinical decisions.\n\nCommands:\n");
    for (size_t i = 0; commands[i]; i++)
        fprintf(out, "  %-11s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out,
            "\n'dosemap COMMAND --help' tells more. Any other NAME runs dosemap-NAME from PATH.\n\n"
            "Options:\n"
            "      --version   show the version\n"
            "  -h, --help      show this text\n");
}

/* As git does: a program of that name on PATH is a command too. Returns only if there is none. */
static int run_external(char **argv)
{
    char name[256];
    if (snprintf(name, sizeof name, "dosemap-%s", argv[0]) < (int)sizeof name &&
        !strchr(argv[0], '/')) {
        char *command_name = argv[0];
        argv[0] = name;
        execvp(name, argv);
        argv[0] = command_name;
        if (errno != ENOENT) {
            fprintf(stderr, "dosemap: cannot run %s: %s\n", name, strerror(errno));
            return EXIT_FAILED;
        }
    }
    fprintf(stderr,
            "dosemap: '%s' is not a command, and there is no %s on PATH\n"
            "Try 'dosemap --help'.\n",
            argv[0], name);
    return EXIT_USAGE;
}

static int dispatch(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("dosemap %s\n", dm_version());
        return EXIT_DONE;
    }
    if (argv[1][0] == '-') {
        fprintf(stderr,
                "dosemap: '%s' is no option of dosemap itself; options of a command come "
                "after it\nTry 'dosemap --help'.\n",
                argv[1]);
        return EXIT_USAGE;
    }
    for (size_t i = 0; commands[i]; i++)
        if (strcmp(argv[1], commands[i]->name) == 0)
            return commands[i]->run(argc - 1, argv + 1);
    return run_external(argv + 1);
}

int main(int argc, char **argv)
{
    terminal_install_signal_handlers();
    json_work_install();
    int status = dispatch(argc, argv);
    /* A report that did not reach its file is no success. */
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == EXIT_DONE) {
        fprintf(stderr, "dosemap: cannot write to standard output: %s\n", strerror(errno));
        status = EXIT_FAILED;
    }
    return status;
}
