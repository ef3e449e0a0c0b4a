/* SPDX-License-Identifier: Apache-2.0 */
/* Failures and text: from the library to Python, and file names the other way. */
#include <cstdio>
#include <cstring>

#include "binding/words.h"

namespace binding
{

/* Kept by the module, so that it ends with the module. */
static const char factory_name[] = "_error_factory";

static nb::module_ this_module()
{
    return nb::module_::import_("dosemap._core");
}

void set_error_factory(error_factory factory)
{
    this_module().attr(factory_name) = factory;
}

void raise(const dm_error &error)
{
    nb::object factory = nb::getattr(this_module(), factory_name, nb::none());
    if (factory.is_none()) {
        char line[2048];
        nb::str message = text(dm_error_text(&error, line, sizeof line));
        PyErr_SetObject(PyExc_RuntimeError, message.ptr());
        throw nb::python_error();
    }
    nb::object exception = factory(static_cast<int>(error.status), text(error.where),
                                   text(error.what), text(error.remedy));
    if (!PyExceptionInstance_Check(exception.ptr()))
        throw nb::type_error("the error factory has not made an exception");
    PyErr_SetObject(reinterpret_cast<PyObject *>(Py_TYPE(exception.ptr())), exception.ptr());
    throw nb::python_error();
}

void raise_value(const std::string &what, const std::string &remedy)
{
    dm_error error = {};
    error.status = DM_ERROR_VALUE;
    std::snprintf(error.what, sizeof error.what, "%s", what.c_str());
    std::snprintf(error.remedy, sizeof error.remedy, "%s", remedy.c_str());
    raise(error);
}

void raise_word(const char *what, const std::string &given, const std::string &words)
{
    raise_value(std::string(what) + " '" + given + "' is unknown", "use one of " + words);
}

nb::str text(const char *bytes)
{
    PyObject *made =
        PyUnicode_DecodeUTF8(bytes, static_cast<Py_ssize_t>(std::strlen(bytes)), "surrogateescape");
    if (!made)
        throw nb::python_error();
    return nb::steal<nb::str>(made);
}

std::string path::bytes() const
{
    PyObject *encoded = nullptr;
    if (!PyUnicode_FSConverter(name.ptr(), &encoded))
        throw nb::python_error();
    nb::object owner = nb::steal(encoded);
    return std::string(PyBytes_AsString(encoded), static_cast<size_t>(PyBytes_Size(encoded)));
}

const char *c_string(const std::string &value, const char *what)
{
    if (value.find('\0') != std::string::npos)
        raise_value(std::string(what) + " holds a NUL character", "leave it out");
    return value.c_str();
}

} // namespace binding
