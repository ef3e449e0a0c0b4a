/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jansson in commands. Its reader does not survive a shortage of memory, and what is built from its
 * values would lack members without a word. Commands use it before their work or behind it, so that
 * the program can end there: between json_work_begin and json_work_end a shortage is an error message
 * and EXIT_FAILED. The library's own use of Jansson, outside of these, is as it was.
 */
#ifndef DOSEMAP_CLI_JSON_WORK_H
#define DOSEMAP_CLI_JSON_WORK_H

/* Once, before anything else uses Jansson. */
void json_work_install(void);
void json_work_begin(void);
void json_work_end(void);

/* The message, and the end of the program; partial files are removed. */
_Noreturn void exit_without_memory(void);

#endif
