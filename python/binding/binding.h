/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dosemap._core: dosemap.h for the Python package, which is the only one to use it.
 *
 * What a Python object owns is a shared_ptr to the C object, so that what is borrowed from a C object
 * (a prediction's dose map, a DVH's structures) keeps that object alive. All of them are made and
 * released with the GIL held.
 */
#ifndef DOSEMAP_BINDING_H
#define DOSEMAP_BINDING_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "dosemap.h"

namespace nb = nanobind;

namespace binding
{

/* ---- Failures ------------------------------------------------------------------------------- */

/* Raises what the package makes of an error. */
[[noreturn]] void raise(const dm_error &error);
[[noreturn]] void raise_value(const std::string &what, const std::string &remedy);

/* Makes an exception of status, where, what and remedy. */
using error_factory = nb::typed<nb::callable, nb::object(int, nb::str, nb::str, nb::str)>;
void set_error_factory(error_factory factory);

/* ---- Text ----------------------------------------------------------------------------------- */

/* The library's text, which names files, as Python has file names: bytes that are not UTF-8 become
 * surrogates. */
nb::str text(const char *bytes);

/* A file name as Python takes one: str, bytes or os.PathLike. */
struct path {
    nb::object name;
    /* As the system wants it. Raises ValueError where there is no such name (NUL, surrogates). */
    std::string bytes() const;
};

/* What is not looked at beyond a NUL must not hold one; `what` it is. */
const char *c_string(const std::string &value, const char *what);

/* ---- C objects ------------------------------------------------------------------------------ */

/* Where a C function puts what it makes; released unless it is handed on. */
template <class T, void (*release)(T *)> class made
{
  public:
    made() = default;
    made(const made &) = delete;
    made &operator=(const made &) = delete;
    ~made()
    {
        release(object);
    }
    T **put()
    {
        return &object;
    }
    T *get() const
    {
        return object;
    }
    /* Not to be released. */
    void leave()
    {
        object = nullptr;
    }
    std::shared_ptr<T> share()
    {
        std::shared_ptr<T> shared(object, release);
        object = nullptr;
        return shared;
    }

  private:
    T *object = nullptr;
};

using made_string = made<char, dm_string_free>;

struct volume {
    std::shared_ptr<const dm_volume> c;
};
struct labels {
    std::shared_ptr<dm_labels> c;
};
struct dvh {
    std::shared_ptr<const dm_dvh> c;
    size_t n_thresholds; /* of Vx */
};
struct model {
    std::shared_ptr<const dm_model> c;
};
struct pet_info {
    dm_pet_info c;
};
struct ct_info {
    dm_ct_info c;
};

/* ---- Grids and arrays ----------------------------------------------------------------------- */

using affine = std::array<double, 12>; /* rows of the 3x4 matrix */
using sizes = std::tuple<size_t, size_t, size_t>;

template <class T>
using array_3d = nb::ndarray<const T, nb::ndim<3>, nb::f_contig, nb::device::cpu>;

dm_grid grid_of(const sizes &dim, const affine &rows);
template <class T> dm_grid grid_of(const array_3d<T> &array, const affine &rows)
{
    return grid_of(sizes(array.shape(0), array.shape(1), array.shape(2)), rows);
}
sizes sizes_of(const size_t dim[3]);
affine affine_of(const dm_grid &grid);

/* Raises where the voxels do not lie as C reads them. */
void check_aligned(const void *data, size_t element);

/* ---- The parts of the module ---------------------------------------------------------------- */

/* Python that forgets its modules and imports them again gets the types that there are. */
template <class T> bool is_bound(nb::module_ &m, const char *name)
{
    nb::handle type = nb::type<T>();
    if (type.is_valid())
        m.attr(name) = type;
    return type.is_valid();
}

void bind_volume(nb::module_ &m);
void bind_labels(nb::module_ &m);
void bind_pet_ct(nb::module_ &m);
void bind_dvh(nb::module_ &m);
void bind_model(nb::module_ &m);
void bind_predictor(nb::module_ &m);

} // namespace binding

template <> struct nanobind::detail::type_caster<binding::path> {
    NB_TYPE_CASTER(binding::path, const_name("str | bytes | os.PathLike[str] | os.PathLike[bytes]"))

    bool from_python(handle source, uint32_t, cleanup_list *) noexcept
    {
        value.name = steal(PyOS_FSPath(source.ptr()));
        if (!value.name.is_valid())
            PyErr_Clear();
        return value.name.is_valid();
    }
};

#endif
