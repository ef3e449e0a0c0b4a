/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap doctor: what this installation can use. */
#include <stdio.h>
#include <stdlib.h>

#include "cli/commands.h"
#include "cli/terminal.h"
#include "dosemap.h"

typedef struct doctor_args {
    bool json;
} doctor_args;

static const option_spec doctor_options[] = {
    {"json", 0, OPTION_FLAG, offsetof(doctor_args, json), NULL, "print JSON", 0, 0, NULL}, {0}};

static int run(int argc, char **argv)
{
    doctor_args args = {0};
    string_list operands = {0};
    dm_error err = {0};
    char *text = NULL;
    int status = options_parse(&command_doctor, argc, argv, &args, &operands);
    if (status < 0 && operands.count > 0)
        status = usage_error(&command_doctor, "'%s' is one word too many", operands.items[0]);
    if (status < 0) {
        status = EXIT_FAILED;
        if (dm_doctor(args.json, &text, &err) == DM_OK) {
            fputs(text, stdout);
            status = EXIT_DONE;
        } else {
            terminal_error(&err);
        }
    }
    dm_string_free(text);
    free(operands.items);
    return status;
}

const command command_doctor = {"doctor", "[options]",    "what this installation can use",
                                NULL,     doctor_options, run};
