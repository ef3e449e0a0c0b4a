/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_CLI_COMMANDS_H
#define DOSEMAP_CLI_COMMANDS_H

#include "cli/options.h"

extern const command command_predict, command_dvh, command_inspect, command_forward, command_bench,
    command_doctor, command_completion;

#endif
