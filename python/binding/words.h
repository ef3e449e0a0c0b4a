/* SPDX-License-Identifier: Apache-2.0 */
/* Options that models and predictors have in common, in Python's words. */
#ifndef DOSEMAP_BINDING_WORDS_H
#define DOSEMAP_BINDING_WORDS_H

#include "binding/binding.h"

namespace binding
{

/* A word of Python's for each value of an enumeration. */
template <class Enum> struct word {
    const char *name;
    Enum value;
};

extern const word<dm_precision> precision_words[5];
extern const word<dm_convolutions> convolutions_words[3];

[[noreturn]] void raise_word(const char *what, const std::string &given, const std::string &words);

template <class Enum, size_t N>
Enum chosen(const word<Enum> (&words)[N], const std::string &given, const char *what)
{
    std::string all;
    for (const word<Enum> &w : words) {
        if (given == w.name)
            return w.value;
        all += (all.empty() ? "'" : ", '") + std::string(w.name) + "'";
    }
    raise_word(what, given, all);
}

/* Null for a value without a word. */
template <class Enum, size_t N> const char *word_of(const word<Enum> (&words)[N], Enum value)
{
    for (const word<Enum> &w : words)
        if (w.value == value)
            return w.name;
    return nullptr;
}

/* x, y, z voxels. */
using tile_sizes = std::array<size_t, 3>;

} // namespace binding

#endif
