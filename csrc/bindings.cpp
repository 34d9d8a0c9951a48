// Python bindings: raw addresses and sizes in, nothing out. The Python wrappers in kernels/ check
// devices, dtypes, shapes and contiguity; what can still be checked here is.
#include <pybind11/pybind11.h>

#include "adjoint_matching.h"
#include "gelu.h"
#include "path_kl.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address, const char* name) {
    if (address == 0) throw std::invalid_argument(std::string(name) + " is a null address");
    return reinterpret_cast<T*>(address);
}

trqam::Shape checked(int64_t runs, int64_t steps, int64_t batch, int64_t dim, int64_t horizon) {
    const trqam::Shape shape{runs, steps, batch, dim};
    trqam::check_shape(shape);
    if (horizon < 1) {
        throw std::invalid_argument("horizon is " + std::to_string(horizon) +
                                    "; it must be at least 1");
    }
    return shape;
}

// On the CPU `queue` is the number of threads, on CUDA the address of the stream.
template <typename T>
void path_kl_forward(bool cuda, uintptr_t velocity, uintptr_t base_velocity,
                     uintptr_t per_trajectory, uintptr_t mean, int64_t runs, int64_t steps,
                     int64_t batch, int64_t dim, int64_t horizon, uintptr_t queue) {
    const trqam::Shape shape = checked(runs, steps, batch, dim, horizon);
    const T* v = pointer<const T>(velocity, "velocity");
    const T* base = pointer<const T>(base_velocity, "base_velocity");
    T* rows = pointer<T>(per_trajectory, "per_trajectory");
    T* out = pointer<T>(mean, "mean");
    py::gil_scoped_release release;
    if (!cuda) {
        trqam::path_kl_forward(v, base, rows, out, shape, horizon, static_cast<int>(queue));
        return;
    }
#ifdef TRQAM_WITH_CUDA
    trqam::path_kl_forward_cuda(v, base, rows, out, shape, horizon,
                                reinterpret_cast<void*>(queue));
#else
    throw std::runtime_error("trqam_fast._C was built without CUDA");
#endif
}

template <typename T>
void path_kl_backward(bool cuda, uintptr_t velocity, uintptr_t base_velocity,
                      uintptr_t grad_per_trajectory, uintptr_t grad_velocity, int64_t runs,
                      int64_t steps, int64_t batch, int64_t dim, int64_t horizon,
                      uintptr_t queue) {
    const trqam::Shape shape = checked(runs, steps, batch, dim, horizon);
    const T* v = pointer<const T>(velocity, "velocity");
    const T* base = pointer<const T>(base_velocity, "base_velocity");
    const T* upstream = pointer<const T>(grad_per_trajectory, "grad_per_trajectory");
    T* grad = pointer<T>(grad_velocity, "grad_velocity");
    py::gil_scoped_release release;
    if (!cuda) {
        trqam::path_kl_backward(v, base, upstream, grad, shape, horizon,
                                static_cast<int>(queue));
        return;
    }
#ifdef TRQAM_WITH_CUDA
    trqam::path_kl_backward_cuda(v, base, upstream, grad, shape, horizon,
                                 reinterpret_cast<void*>(queue));
#else
    throw std::runtime_error("trqam_fast._C was built without CUDA");
#endif
}

template <typename T>
void adjoint_matching_forward(bool cuda, uintptr_t velocity, uintptr_t base_velocity,
                              uintptr_t adjoint, uintptr_t lam, uintptr_t scratch, uintptr_t loss,
                              uintptr_t path_kl, uintptr_t grad_velocity, int64_t runs,
                              int64_t steps, int64_t batch, int64_t dim, int64_t horizon,
                              uintptr_t queue) {
    const trqam::Shape shape = checked(runs, steps, batch, dim, horizon);
    const T* v = pointer<const T>(velocity, "velocity");
    const T* base = pointer<const T>(base_velocity, "base_velocity");
    const T* a = pointer<const T>(adjoint, "adjoint");
    const T* lam_values = pointer<const T>(lam, "lam");
    double* sums = pointer<double>(scratch, "scratch");
    T* loss_out = pointer<T>(loss, "loss");
    T* kl_out = pointer<T>(path_kl, "path_kl");
    T* grad = reinterpret_cast<T*>(grad_velocity);
    py::gil_scoped_release release;
    if (!cuda) {
        trqam::adjoint_matching_forward(v, base, a, lam_values, sums, loss_out, kl_out, grad,
                                        shape, horizon, static_cast<int>(queue));
        return;
    }
#ifdef TRQAM_WITH_CUDA
    trqam::adjoint_matching_forward_cuda(v, base, a, lam_values, sums, loss_out, kl_out, grad,
                                         shape, horizon, reinterpret_cast<void*>(queue));
#else
    throw std::runtime_error("trqam_fast._C was built without CUDA");
#endif
}

template <typename T>
void gelu_forward(uintptr_t z, uintptr_t out, int64_t groups, int64_t count, int64_t z_stride,
                  int64_t out_stride, int threads) {
    const T* from = pointer<const T>(z, "z");
    T* to = pointer<T>(out, "out");
    py::gil_scoped_release release;
    trqam::gelu_forward(from, to, groups, count, z_stride, out_stride, threads);
}

template <typename T>
void gelu_backward(uintptr_t z, uintptr_t grad, int64_t groups, int64_t count, int64_t z_stride,
                   int64_t grad_stride, int threads) {
    const T* from = pointer<const T>(z, "z");
    T* to = pointer<T>(grad, "grad");
    py::gil_scoped_release release;
    trqam::gelu_backward(from, to, groups, count, z_stride, grad_stride, threads);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "C++ and CUDA reductions of trqam_fast";
#ifdef TRQAM_WITH_CUDA
    module.attr("with_cuda") = true;
#else
    module.attr("with_cuda") = false;
#endif
    module.def("path_kl_forward_float32", &path_kl_forward<float>);
    module.def("path_kl_forward_float64", &path_kl_forward<double>);
    module.def("path_kl_backward_float32", &path_kl_backward<float>);
    module.def("path_kl_backward_float64", &path_kl_backward<double>);
    module.def("adjoint_matching_forward_float32", &adjoint_matching_forward<float>);
    module.def("adjoint_matching_forward_float64", &adjoint_matching_forward<double>);
    module.def("gelu_forward_float32", &gelu_forward<float>);
    module.def("gelu_forward_float64", &gelu_forward<double>);
    module.def("gelu_backward_float32", &gelu_backward<float>);
    module.def("gelu_backward_float64", &gelu_backward<double>);
}
