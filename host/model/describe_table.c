/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/describe.h"

#define SHORTEST 8 /* elastic columns are not cut below this */

struct text_table {
    const table_column *columns;
    size_t n_columns, n_rows;
    char (*cells)[TABLE_CELL];
};

/* Characters, not bytes: continuation bytes of UTF-8 have no width. */
static size_t width_of(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

text_table *table_create(const table_column *columns, size_t n_columns, size_t n_rows)
{
    text_table *t = array_zero(1, sizeof *t);
    size_t cells;
    if (!t || n_columns > TABLE_COLUMNS || !size_multiply(n_rows, n_columns, &cells) ||
        !(t->cells = array_zero(cells + 1, sizeof *t->cells))) {
        free(t);
        return NULL;
    }
    t->columns = columns;
    t->n_columns = n_columns;
    t->n_rows = n_rows;
    return t;
}

void table_free(text_table *t)
{
    if (t)
        free(t->cells);
    free(t);
}

static const char *cell_of(const text_table *t, size_t row, size_t column)
{
    return t->cells[row * t->n_columns + column];
}

void table_cell(text_table *t, size_t row, size_t column, const char *format, ...)
{
    char *cell = t->cells[row * t->n_columns + column];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cell, TABLE_CELL, format, arguments);
    va_end(arguments);
    /* Cutting may have split a character. */
    size_t n = strlen(cell), tail = n;
    while (tail > 0 && n - tail < 4 && ((unsigned char)cell[tail - 1] & 0xc0) == 0x80)
        tail--;
    if (n == TABLE_CELL - 1 && tail > 0 && (unsigned char)cell[tail - 1] >= 0xc0)
        cell[tail - 1] = 0;
}

/* Numbers fill their column from the right, and need less. */
static size_t gap_before(const text_table *t, size_t column)
{
    return column == 0 ? 0 : t->columns[column].right ? 1 : 2;
}

static void column_widths(const text_table *t, size_t *width)
{
    size_t total = 0;
    for (size_t c = 0; c < t->n_columns; c++) {
        width[c] = width_of(t->columns[c].title);
        for (size_t r = 0; r < t->n_rows; r++) {
            size_t w = width_of(cell_of(t, r, c));
            width[c] = w > width[c] ? w : width[c];
        }
        total += gap_before(t, c) + width[c];
    }
    while (total > TEXT_COLUMNS) {
        size_t widest = t->n_columns;
        for (size_t c = 0; c < t->n_columns; c++)
            if (t->columns[c].elastic && width[c] > SHORTEST &&
                (widest == t->n_columns || width[c] > width[widest]))
                widest = c;
        if (widest == t->n_columns)
            break;
        width[widest]--;
        total--;
    }
}

static void print_cell(FILE *out, const char *text, size_t width, bool right, bool last)
{
    size_t w = width_of(text), shown = w > width ? width - 2 : w;
    size_t fill = w > width ? 0 : width - w;
    fprintf(out, "%*s", right ? (int)fill : 0, "");
    for (const char *p = text; *p; p++) {
        bool begins = ((unsigned char)*p & 0xc0) != 0x80;
        if (begins && !shown)
            break;
        shown -= begins;
        fputc(*p, out);
    }
    fprintf(out, "%s%*s", w > width ? ".." : "", right || last ? 0 : (int)fill, "");
}

void table_print(const text_table *t, FILE *out)
{
    size_t width[TABLE_COLUMNS];
    column_widths(t, width);
    for (size_t r = 0; r <= t->n_rows; r++) {
        size_t used = t->n_columns; /* without the empty cells at the end */
        while (r && used > 1 && !*cell_of(t, r - 1, used - 1))
            used--;
        for (size_t c = 0; c < used; c++) {
            const char *text = r ? cell_of(t, r - 1, c) : t->columns[c].title;
            fprintf(out, "%*s", (int)gap_before(t, c), "");
            print_cell(out, text, width[c], t->columns[c].right, c + 1 == used);
        }
        fputc('\n', out);
    }
}

/* ---- Running text --------------------------------------------------------------------------- */

/* Control characters, which a terminal would obey; U+0080 to U+009F are two bytes. */
static bool is_control(const unsigned char *p)
{
    return *p < 0x20 || *p == 0x7f || (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

void print_wrapped(FILE *out, size_t indent, const char *text)
{
    size_t column = indent;
    bool first = true;
    for (;;) {
        while (is_space(*text))
            text++;
        if (!*text)
            break;
        const char *end = text;
        size_t width = 0;
        for (; *end && !is_space(*end); end++)
            width += ((unsigned char)*end & 0xc0) != 0x80;
        if (!first && column + 1 + width > TEXT_COLUMNS) {
            fprintf(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (!first) {
            fputc(' ', out);
            column++;
        }
        for (; text < end; text++) {
            bool control = is_control((const unsigned char *)text);
            if (control && (unsigned char)*text == 0xc2)
                text++;
            fputc(control ? '?' : *text, out);
        }
        column += width;
        first = false;
    }
    fputc('\n', out);
}
