/* SPDX-License-Identifier: Apache-2.0 */
/* The little of NVIDIA's management library that is needed, opened at run time: it comes with the
 * driver, not with the toolkit, and without it nothing is missing but the energy. */
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>

#include "predict/cuda/cuda_measure.h"

/* nvml.h; NVML_SUCCESS is 0. */
typedef struct nvmlDevice_st *nvml_device;
typedef struct management {
    int (*init)(void);
    int (*find)(const char *pci_bus_id, nvml_device *device);
    int (*energy)(nvml_device device, unsigned long long *millijoules);
} management;

/* Written once, under pthread_once; stays for the life of the process. */
static management library;
static bool is_there;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_library(void)
{
    void *handle = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return;
    /* POSIX asks for this way round: ISO C knows no cast from an object to a function. */
    *(void **)&library.init = dlsym(handle, "nvmlInit_v2");
    *(void **)&library.find = dlsym(handle, "nvmlDeviceGetHandleByPciBusId_v2");
    *(void **)&library.energy = dlsym(handle, "nvmlDeviceGetTotalEnergyConsumption");
    is_there = library.init && library.find && library.energy && library.init() == 0;
    if (!is_there)
        dlclose(handle);
}

/* Numbers of devices are not the library's where CUDA_VISIBLE_DEVICES chooses: places on the bus
 * are. */
double cuda_device_energy(int device)
{
    struct cudaDeviceProp properties;
    char place[32];
    nvml_device found = NULL;
    unsigned long long millijoules = 0;
    pthread_once(&once, open_library);
    if (!is_there)
        return NAN;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
        (void)cudaGetLastError();
        return NAN;
    }
    snprintf(place, sizeof place, "%08x:%02x:%02x.0", (unsigned)properties.pciDomainID,
             (unsigned)properties.pciBusID, (unsigned)properties.pciDeviceID);
    if (library.find(place, &found) != 0 || library.energy(found, &millijoules) != 0)
        return NAN;
    return 1e-3 * (double)millijoules;
}

double cuda_energy(void *state)
{
    const cuda_state *s = state;
    double joules = cuda_device_energy(s->device);
    for (size_t i = 0; i < s->n_peers; i++)
        joules += cuda_device_energy(s->peer[i]->device);
    return joules;
}
