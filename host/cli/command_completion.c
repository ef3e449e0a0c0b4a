/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap completion bash|zsh|fish: shell completion from the tables of commands and options. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"

static const option_spec no_options[] = {{0}};

static int run(int argc, char **argv);

const command command_completion = {"completion",
                                    "bash|zsh|fish",
                                    "print shell completion",
                                    "For example: source <(dosemap completion bash)",
                                    no_options,
                                    run};

/* Words to offer behind an option: those of "auto|cpu|cuda[:N,M|:all]" or "VALUE|off" that are to be
 * written as they stand, in lower case. Returns how many; prints nothing for out == NULL. */
static size_t print_choices(FILE *out, const option_spec *option)
{
    size_t count = 0;
    const char *p = option->argument ? option->argument : "";
    for (bool more = *p; more;) {
        size_t n = strcspn(p, "|");
        if (islower((unsigned char)*p)) {
            if (out)
                fprintf(out, "%s%.*s", count ? " " : "", (int)strcspn(p, "|["), p);
            count++;
        }
        more = p[n] == '|';
        p += n + more;
    }
    return count;
}

static bool is_file(const option_spec *spec)
{
    return spec->kind == OPTION_FILE || spec->kind == OPTION_FILE_LIST;
}

static void print_bash_command(const command *cmd)
{
    printf("    %s)\n        case \"$prev\" in\n", cmd->name);
    for (const option_spec *o = cmd->options; o->name; o++) {
        if (!is_file(o) && print_choices(NULL, o) > 0) {
            printf("        --%s) COMPREPLY=($(compgen -W '", o->name);
            print_choices(stdout, o);
            printf("' -- \"$cur\")); return ;;\n");
        } else if (o->kind != OPTION_FLAG && !is_file(o)) {
            printf("        --%s) return ;;\n", o->name);
        }
    }
    printf("        esac\n        words='--help");
    for (const option_spec *o = cmd->options; o->name; o++)
        printf(" --%s", o->name);
    printf("' ;;\n");
}

static void print_bash(void)
{
    printf("# bash completion for dosemap\n_dosemap() {\n"
           "    local cur=\"${COMP_WORDS[COMP_CWORD]}\" prev=\"${COMP_WORDS[COMP_CWORD-1]}\" "
           "words=''\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        COMPREPLY=($(compgen -W '");
    for (size_t i = 0; commands[i]; i++)
        printf("%s ", commands[i]->name);
    printf("--help --version' -- \"$cur\"))\n        return\n    fi\n"
           "    case \"${COMP_WORDS[1]}\" in\n");
    for (size_t i = 0; commands[i]; i++)
        print_bash_command(commands[i]);
    printf("    esac\n    case \"$cur\" in\n"
           "    -*) COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")) ;;\n"
           "    *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n    esac\n}\n"
           "complete -o filenames -F _dosemap dosemap\n");
}

/* A single-quoted shell string. */
static void print_quoted(const char *text)
{
    putchar('\'');
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", stdout);
        else
            putchar(*text);
    }
    putchar('\'');
}

static void print_fish(void)
{
    printf("# fish completion for dosemap\n");
    for (size_t i = 0; commands[i]; i++) {
        const command *cmd = commands[i];
        printf("complete -c dosemap -n __fish_use_subcommand -f -a %s -d ", cmd->name);
        print_quoted(cmd->summary);
        putchar('\n');
        for (const option_spec *o = cmd->options; o->name; o++) {
            printf("complete -c dosemap -n '__fish_seen_subcommand_from %s' -l %s", cmd->name,
                   o->name);
            if (o->letter)
                printf(" -s %c", o->letter);
            if (o->kind != OPTION_FLAG)
                printf(is_file(o) ? " -r" : " -x");
            if (!is_file(o) && print_choices(NULL, o) > 0) {
                printf(" -a '");
                print_choices(stdout, o);
                printf("'");
            }
            printf(" -d ");
            print_quoted(o->help);
            putchar('\n');
        }
    }
}

static int run(int argc, char **argv)
{
    string_list shells = {0};
    int status = options_parse(&command_completion, argc, argv, &shells, &shells);
    const char *shell = status < 0 && shells.count == 1 ? shells.items[0] : "";
    if (status >= 0) {
        free(shells.items);
        return status;
    }
    status = EXIT_DONE;
    if (strcmp(shell, "bash") == 0) {
        print_bash();
    } else if (strcmp(shell, "zsh") == 0) {
        printf("#compdef dosemap\nautoload -U +X bashcompinit && bashcompinit\n");
        print_bash();
    } else if (strcmp(shell, "fish") == 0) {
        print_fish();
    } else {
        status = usage_error(&command_completion, "bash, zsh or fish is wanted, not '%s'", shell);
    }
    free(shells.items);
    return status;
}
