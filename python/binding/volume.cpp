/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes, and grids of arrays. */
#include "binding/detached.h"

namespace binding
{

dm_grid grid_of(const sizes &dim, const affine &rows)
{
    dm_grid grid = {};
    std::tie(grid.dim[0], grid.dim[1], grid.dim[2]) = dim;
    for (size_t i = 0; i < 12; i++)
        grid.affine[i / 4][i % 4] = rows[i];
    return grid;
}

sizes sizes_of(const size_t dim[3])
{
    return {dim[0], dim[1], dim[2]};
}

affine affine_of(const dm_grid &grid)
{
    affine rows;
    for (size_t i = 0; i < 12; i++)
        rows[i] = grid.affine[i / 4][i % 4];
    return rows;
}

void check_aligned(const void *data, size_t element)
{
    if (reinterpret_cast<uintptr_t>(data) % element != 0)
        raise_value("the array's elements are not aligned", "give a copy of it");
}

static volume volume_read(const path &name)
{
    std::string file = name.bytes();
    made<dm_volume, dm_volume_free> read;
    run_detached([&](dm_error *err) { return dm_volume_read(file.c_str(), read.put(), err); });
    return {read.share()};
}

static volume volume_view(array_3d<float> data, const affine &rows,
                          const std::optional<nb::bytes> &header)
{
    check_aligned(data.data(), sizeof(float));
    dm_grid grid = grid_of(data, rows);
    made<dm_volume, dm_volume_free> view;
    dm_error error = {};
    /* Volumes of Python are inputs, which are not written to. */
    float *voxels = const_cast<float *>(data.data());
    dm_status status =
        header ? dm_volume_view_header(header->c_str(), header->size(), voxels, view.put(), &error)
               : dm_volume_view(&grid, voxels, view.put(), &error);
    if (status != DM_OK)
        raise(error);
    if (sizes_of(view.get()->grid.dim) != sizes_of(grid.dim))
        raise_value("the header is of an image with another size", "give the array's own header");
    std::shared_ptr<const dm_volume> seen = view.share();
    /* Both live and die together. */
    struct with_array {
        array_3d<float> array;
        std::shared_ptr<const dm_volume> volume;
    };
    auto both = std::make_shared<with_array>(with_array{std::move(data), seen});
    return {std::shared_ptr<const dm_volume>(both, seen.get())};
}

static void volume_write(const volume &v, const path &name, unsigned threads)
{
    std::string file = name.bytes();
    run_detached(
        [&](dm_error *err) { return dm_volume_write(v.c.get(), file.c_str(), threads, err); });
}

/* Empty where the grids are alike. */
static nb::str grid_difference(const sizes &dim_a, const affine &rows_a, const sizes &dim_b,
                               const affine &rows_b)
{
    dm_grid a = grid_of(dim_a, rows_a), b = grid_of(dim_b, rows_b);
    char reason[512] = "";
    return dm_grid_equal(&a, &b, reason, sizeof reason) ? nb::str("") : text(reason);
}

static void bind_volume_class(nb::module_ &m)
{
    if (is_bound<volume>(m, "Volume"))
        return;
    nb::class_<volume>(m, "Volume", "A 3D image in float32 with the place of its voxels.")
        .def_static("read", volume_read, nb::arg("path"), "NIfTI.")
        .def_static(
            "view", volume_view, nb::arg("data").noconvert(), nb::arg("affine"),
            nb::arg("header") = nb::none(),
            "An array (x, y, z), kept and not copied; its place: a NIfTI header, or rows of 3x4.")
        .def("write", volume_write, nb::arg("path"), nb::arg("threads") = 0)
        .def_prop_ro("dim", [](const volume &v) { return sizes_of(v.c->grid.dim); })
        .def_prop_ro("affine", [](const volume &v) { return affine_of(v.c->grid); })
        .def_prop_ro("spacing_mm",
                     [](const volume &v) {
                         const double *mm = v.c->grid.spacing_mm;
                         return std::make_tuple(mm[0], mm[1], mm[2]);
                     })
        .def_prop_ro(
            "data",
            [](nb::pointer_and_handle<volume> self) {
                const dm_volume *v = self.p->c.get();
                return nb::ndarray<nb::array_api, const float, nb::ndim<3>, nb::f_contig>(
                    v->data, 3, v->grid.dim, self.h);
            },
            "The voxels (x, y, z), not copied, as a buffer that NumPy takes.");
}

void bind_volume(nb::module_ &m)
{
    bind_volume_class(m);
    m.def("grid_difference", grid_difference, nb::arg("dim_a"), nb::arg("affine_a"),
          nb::arg("dim_b"), nb::arg("affine_b"), "What differs; empty for grids that are alike.");
}

} // namespace binding
