/* SPDX-License-Identifier: Apache-2.0 */
/* Stands for NVIDIA's management library (libnvidia-ml.so.1) in tests: every device takes 2.5 J more
 * each time that it is asked. */
#include <stdio.h>

typedef struct fake_device {
    unsigned long long millijoules;
} fake_device;

int nvmlInit_v2(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *place, fake_device **device);
int nvmlDeviceGetTotalEnergyConsumption(fake_device *device, unsigned long long *millijoules);

enum { SUCCESS = 0, INVALID = 2, NOT_FOUND = 6 };

int nvmlInit_v2(void)
{
    return SUCCESS;
}

/* Domain, bus, device and function, as the driver writes them. */
int nvmlDeviceGetHandleByPciBusId_v2(const char *place, fake_device **device)
{
    static fake_device devices[8];
    unsigned domain, bus, slot;
    int end = 0;
    if (sscanf(place, "%8x:%2x:%2x.0%n", &domain, &bus, &slot, &end) != 3 || end != 16 || place[16])
        return NOT_FOUND;
    *device = &devices[(bus + slot) % 8];
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(fake_device *device, unsigned long long *millijoules)
{
    if (!device)
        return INVALID;
    device->millijoules += 2500;
    *millijoules = device->millijoules;
    return SUCCESS;
}
