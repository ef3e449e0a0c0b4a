/* SPDX-License-Identifier: Apache-2.0 */
/* What is known about a PET, and a CT on its grid. */
#include <cmath>
#include <cstring>

#include "binding/detached.h"
#include "binding/words.h"

namespace binding
{

static const word<dm_units> units_words[] = {
    {"suv", DM_UNITS_SUV}, {"bqml", DM_UNITS_BQML}, {"kbqml", DM_UNITS_KBQML}};
static const word<dm_decay> decay_words[] = {
    {"injection", DM_DECAY_INJECTION}, {"start", DM_DECAY_START}, {"none", DM_DECAY_NONE}};

using optional_text = std::optional<std::string>;

static pet_info pet_info_read(const path &name)
{
    std::string file = name.bytes();
    pet_info info;
    run_detached([&](dm_error *err) { return dm_pet_info_read(file.c_str(), &info.c, err); });
    return info;
}

/* None is what the library calls unknown. */
template <class Enum, size_t N>
static void bind_word(nb::class_<pet_info> &c, const char *name, Enum dm_pet_info::*field,
                      const word<Enum> (&words)[N])
{
    c.def_prop_rw(
        name,
        [field, &words](const pet_info &info) {
            const char *found = word_of(words, info.c.*field);
            return found ? optional_text(found) : std::nullopt;
        },
        [field, &words, name](pet_info &info, const optional_text &value) {
            info.c.*field = value ? chosen(words, *value, name) : static_cast<Enum>(0);
        },
        nb::for_setter(nb::arg("value").none()));
}

static void bind_number(nb::class_<pet_info> &c, const char *name, double dm_pet_info::*field)
{
    c.def_prop_rw(
        name, [field](const pet_info &info) { return info.c.*field; },
        [field](pet_info &info, double value) { info.c.*field = value; });
}

template <size_t N>
static void bind_text(nb::class_<pet_info> &c, const char *name, char (dm_pet_info::*field)[N])
{
    c.def_prop_rw(
        name, [field](const pet_info &info) { return text(info.c.*field); },
        [field, name](pet_info &info, const std::string &value) {
            if (std::strlen(c_string(value, name)) >= N)
                raise_value(std::string(name) + " has " + std::to_string(value.size()) + " bytes",
                            "use " + std::to_string(N - 1) + " at most");
            std::strcpy(info.c.*field, value.c_str());
        });
}

static void bind_pet_info(nb::module_ &m)
{
    if (is_bound<pet_info>(m, "PetInfo"))
        return;
    nb::class_<pet_info> c(m, "PetInfo", "How to quantify a PET. NaN, None and '' are unknown.");
    c.def("__init__", [](pet_info *info) { dm_pet_info_init(&(new (info) pet_info)->c); });
    c.def_static("read", pet_info_read, nb::arg("pet_path"), "From the sidecar beside the PET.");
    bind_word(c, "units", &dm_pet_info::units, units_words);
    bind_word(c, "decay", &dm_pet_info::decay, decay_words);
    bind_number(c, "body_weight_kg", &dm_pet_info::body_weight_kg);
    bind_number(c, "injected_mbq", &dm_pet_info::injected_mbq);
    bind_number(c, "residual_mbq", &dm_pet_info::residual_mbq);
    bind_number(c, "half_life_s", &dm_pet_info::half_life_s);
    bind_number(c, "injection_time_s", &dm_pet_info::injection_time_s);
    bind_number(c, "scan_time_s", &dm_pet_info::scan_time_s);
    bind_text(c, "radionuclide", &dm_pet_info::radionuclide);
    bind_text(c, "tracer", &dm_pet_info::tracer);
    bind_text(c, "sidecar", &dm_pet_info::sidecar);
}

static double time_parse(const std::string &value)
{
    double seconds;
    dm_error error = {};
    if (dm_time_parse(c_string(value, "the time"), &seconds, &error) != DM_OK)
        raise(error);
    return seconds;
}

static std::pair<volume, ct_info> ct_onto_pet(const volume &ct, const volume &pet, bool is_hu,
                                              bool nan_to_air)
{
    dm_ct_options options = {};
    options.is_hu = is_hu;
    options.nan_to_air = nan_to_air;
    made<dm_volume, dm_volume_free> on_pet;
    ct_info info = {};
    run_detached([&](dm_error *err) {
        return dm_ct_onto_pet(ct.c.get(), pet.c.get(), &options, on_pet.put(), &info.c, err);
    });
    return {volume{on_pet.share()}, info};
}

static void bind_ct_info(nb::module_ &m)
{
    if (is_bound<ct_info>(m, "CtInfo"))
        return;
    nb::class_<ct_info>(m, "CtInfo", "How a CT came onto a PET's grid.")
        .def_prop_ro("dim", [](const ct_info &i) { return sizes_of(i.c.dim); })
        .def_prop_ro("spacing_mm",
                     [](const ct_info &i) {
                         const double *mm = i.c.spacing_mm;
                         return std::make_tuple(mm[0], mm[1], mm[2]);
                     })
        .def_prop_ro("lowest", [](const ct_info &i) { return i.c.lowest; })
        .def_prop_ro("highest", [](const ct_info &i) { return i.c.highest; })
        .def_prop_ro("voxels_to_air", [](const ct_info &i) { return i.c.voxels_to_air; })
        .def_prop_ro("resampled", [](const ct_info &i) { return i.c.resampled; })
        .def_prop_ro("voxels_covered", [](const ct_info &i) { return i.c.voxels_covered; })
        .def_prop_ro("activity_covered", [](const ct_info &i) { return i.c.activity_covered; });
}

static void bind_ct(nb::module_ &m)
{
    bind_ct_info(m);
    m.def("ct_onto_pet", ct_onto_pet, nb::arg("ct"), nb::arg("pet"), nb::arg("is_hu") = false,
          nb::arg("nan_to_air") = false, "A CT in HU onto the PET's grid.");
}

void bind_pet_ct(nb::module_ &m)
{
    bind_pet_info(m);
    bind_ct(m);
    m.def("time_parse", time_parse, nb::arg("text"), "Seconds, of a time of day or with a date.");
    m.def(
        "half_life_s",
        [](const std::string &name) { return dm_half_life_s(c_string(name, "the nuclide")); },
        nb::arg("name"), "NaN if it is not in the list.");
}

} // namespace binding
