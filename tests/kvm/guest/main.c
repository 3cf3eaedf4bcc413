// The test guest: `test=NAME` on its command line says what it does.
#include "guest.h"

struct tss { u32 reserved0; u64 rsp[3]; u64 reserved1; u64 ist[7]; u64 reserved2; u16 reserved3, bitmap; u8 ports[8193]; }
    __attribute__((packed, aligned(16)));

u8 stacks[MOST_CPUS][STACK_SIZE] __attribute__((aligned(16)));
u64 idt[2 * VECTORS];
extern u64 gdt[];
extern u8 exception_stubs[], interrupt_stub[], ap_start[], ap_end[];
extern volatile u32 cpus_started;
static struct tss tasks[MOST_CPUS];
static volatile enum { NOT_YET, STARTED, DONE } ready[MOST_CPUS];

void not_emulated(void);

static void set_gate(u64 vector, u64 stub)
{
    idt[2 * vector] = (stub & 0xffff) | CODE0 << 16 | 0x8eull << 40 | (stub >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = stub >> 32;
}

// Ring 0, where a processor of KVM's emulator takes microseconds for each instruction: only what must be done here.
// Returns RFLAGS for ring 3: most tests do without interrupts, or look for them.
u64 kernel_main(u32 cpu, u64 stack)
{
    struct tss *task = &tasks[cpu];
    task->rsp[0] = stack;
    task->bitmap = __builtin_offsetof(struct tss, ports);
    task->ports[8192] = 0xff;
    u64 base = (u64)task, limit = sizeof *task - 1;
    gdt[TSS / 8 + 2 * cpu] = limit | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[TSS / 8 + 2 * cpu + 1] = base >> 32;
    if (word_is("test", "topology")) {
        note_place(cpu);
        if (cpu)
            ready[cpu] = DONE;
        // They would take time from the one that speaks.
        while (cpu)
            __asm__ volatile("cli; hlt");
    }
    if (cpu)
        return 2;
    for (u64 vector = 0; vector < EXCEPTIONS; vector++)
        set_gate(vector, (u64)exception_stubs + EXCEPTION_STUB * vector);
    set_gate(TAKEN, (u64)interrupt_stub);
    if (word_is("test", "execute-mmio"))
        ((void (*)(void))UNASSIGNED)();
    if (word_is("test", "not-emulated"))
        not_emulated();
    if (word_is("test", "halt")) {
        print("halting\n");
        for (;;)
            __asm__ volatile("cli; hlt");
    }
    return word_is("test", "pin") ? 0x202 : 2;
}

struct frame { u64 vector, error, rip, cs, rflags, rsp, ss; };

void exception(const struct frame *frame, u64 address)
{
    console_again();
    print("\nEXCEPTION %u error %x rip %x cs %x address %x\n", frame->vector, frame->error, frame->rip, frame->cs, address);
    power_off();
}

// Counts the boots of this machine in RAM, which a reset leaves alone.
static u64 boots(void)
{
    u64 count = read64(MARK) == 0x4b52414d746f6f42 ? read64(MARK + 8) + 1 : 1;
    write64(MARK, 0x4b52414d746f6f42);
    write64(MARK + 8, count);
    return count;
}

static void triple_fault(void)
{
    for (unsigned i = 0; i < 2 * VECTORS; i++)
        ((volatile u64 *)idt)[i] = 0;
    __asm__ volatile("ud2");
}

static void reset(void)
{
    // A serial port in a state that a guest does not expect after a reset: loopback, divisor latch.
    outb(0x3f8 + 4, 0x10);
    outb(0x3f8 + 3, 0x80);
    if (word_is("by", "cf9"))
        outb(0xcf9, 0x06);
    if (word_is("by", "i8042"))
        outb(0x64, 0xfe);
    if (word_is("by", "acpi"))
        reset_by_acpi();
    // The processor that asked does not go on; another one might, for a moment.
    for (;;)
        __asm__ volatile("pause");
}

// INIT and a start-up IPI to each processor in turn, by the local APIC's ICR (Intel SDM 3, 11.6.1).
static void start_processors(u64 count)
{
    for (u64 i = 0; i < (u64)(ap_end - ap_start); i++)
        write8(AP_START + i, ap_start[i]);
    // Enabled by its spurious-interrupt vector register: KVM looks for the other processors then.
    write32(0xfee000f0, 0x1ff);
    for (u64 cpu = 1; cpu < count && cpu < MOST_CPUS; cpu++) {
        write32(0xfee00310, (u32)cpu << 24);
        write32(0xfee00300, 0x4500);
        write32(0xfee00310, (u32)cpu << 24);
        write32(0xfee00300, 0x4600 | AP_START >> 12);
        while (ready[cpu] == NOT_YET)
            __asm__ volatile("pause");
    }
}

static void wait_for_processors(u64 count)
{
    for (u64 cpu = 1; cpu < count && cpu < MOST_CPUS; cpu++)
        while (ready[cpu] != DONE)
            __asm__ volatile("pause");
}

static void touch(u64 at)
{
    u64 before = read64(at);
    write64(at, ~at);
    print("page %x %s\n", at, read64(at) == ~at ? "holds" : "does not hold");
    write64(at, before);
}

static void memory(void)
{
    const struct boot *told = boot();
    u64 ram = 0;
    for (unsigned i = 0; i < told->count; i++) {
        const struct range *range = &told->ranges[i];
        print("range %x to %x kind %u\n", range->start, range->start + range->size, (u64)range->kind);
        if (range->kind != 1)
            continue;
        ram += range->size;
        touch(range->start);
        touch((range->start + range->size - 8) & ~7ull);
    }
    print("ram: %u\n", ram);
}

static void all_ones(void)
{
    unsigned wrong = 0;
    outl(UNASSIGNED_PORT, 0x12345678);
    wrong += inb(UNASSIGNED_PORT) != 0xff;
    wrong += inw(UNASSIGNED_PORT) != 0xffff;
    wrong += inl(UNASSIGNED_PORT) != 0xffffffff;
    // Across the end of a device: nobody holds the whole of it.
    wrong += inl(0x3fe) != 0xffffffff;
    u64 places[] = {UNASSIGNED, 0x8ffffffc, 0xfed40000, 0x1ff000000};
    for (unsigned i = 0; i < sizeof places / sizeof *places; i++) {
        u64 at = places[i];
        write32(at, 0x12345678);
        wrong += read8(at) != 0xff;
        wrong += read16(at) != 0xffff;
        wrong += read32(at) != 0xffffffff;
        wrong += read64(at & ~7ull) != 0xffffffffffffffff;
    }
    print("wrong: %u\n", (u64)wrong);
}

// Does as each character says.
static void obey(void)
{
    for (;;) {
        char c = get();
        switch (c) {
        case 'm':
            for (int i = 0; i < 500; i++)
                write32(UNASSIGNED, 0);
            break;
        case 'i':
            for (int i = 0; i < 500; i++)
                outl(UNASSIGNED_PORT, 0);
            break;
        case 'q': return;
        default: put(c); continue;
        }
        print("done %s\n", c == 'm' ? "mmio" : "ports");
    }
}

void user_main(u32 cpu)
{
    if (cpu) {
        if (word_is("ap", "triple-fault"))
            triple_fault();
        if (word_is("test", "garbage")) {
            ready[cpu] = STARTED;
            garbage(number("seed", 1), cpu);
        } else if (word_is("test", "garbage-power")) {
            ready[cpu] = STARTED;
            garbage_power(number("seed", 1), cpu);
        } else {
            print("hello from processor %u\n", (u64)cpu);
        }
        ready[cpu] = DONE;
        for (;;)
            __asm__ volatile("pause");
    }
    u64 cpus = number("cpus", 1);
    if (word_is("test", "hello")) {
        print("hello\n");
    } else if (word_is("test", "string")) {
        static const char text[] = "by a string instruction\n";
        const char *from = text;
        u64 count = sizeof text - 1;
        __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"((u16)0x3f8) : "memory");
    } else if (word_is("test", "reset")) {
        u64 count = boots();
        print("boot %u\n", count);
        start_processors(cpus);
        wait_for_processors(cpus);
        if (count < number("times", 2))
            reset();
    } else if (word_is("test", "triple-fault")) {
        triple_fault();
    } else if (word_is("test", "exception")) {
        __asm__ volatile("ud2");
    } else if (word_is("test", "smp")) {
        start_processors(cpus);
        wait_for_processors(cpus);
        print("all are up\n");
    } else if (word_is("test", "topology")) {
        start_processors(cpus);
        wait_for_processors(cpus);
        topology(cpus);
    } else if (word_is("test", "memory")) {
        memory();
    } else if (word_is("test", "pci")) {
        pci_report();
    } else if (word_is("test", "clocks")) {
        clocks();
    } else if (word_is("test", "interrupts")) {
        interrupts();
    } else if (word_is("test", "initrd")) {
        u64 sum = 0;
        for (u64 i = 0; i < boot()->initrd_size; i++)
            sum += read8(boot()->initrd + i) * (i % 251 + 1);
        print("initrd of %u bytes, sum %u\n", boot()->initrd_size, sum);
    } else if (word_is("test", "all-ones")) {
        all_ones();
    } else if (word_is("test", "obey")) {
        print("ready\n");
        obey();
        print("bye\n");
    } else if (word_is("test", "flood")) {
        for (;;)
            print("more and more ");
    } else if (word_is("test", "spin")) {
        print("ready\n");
        for (;;)
            __asm__ volatile("pause");
    } else if (word_is("test", "button")) {
        print("ready\n");
        wait_for_power_button();
        print("pressed\n");
    } else if (word_is("test", "garbage")) {
        look_around();
        start_processors(cpus);
        garbage(number("seed", 1), 0);
        wait_for_processors(cpus);
        print("garbage done\n");
    } else if (word_is("test", "garbage-power")) {
        start_processors(cpus);
        garbage_power(number("seed", 1), 0);
        wait_for_processors(cpus);
    } else if (word_is("test", "pin")) {
        pin();
    } else if (word_is("test", "disk")) {
        disk();
    } else if (word_is("test", "requests")) {
        requests();
    } else if (word_is("test", "hotplug")) {
        hotplug();
    } else if (word_is("test", "entropy")) {
        entropy();
    } else if (word_is("test", "hvc")) {
        hvc();
    } else if (word_is("test", "panic")) {
        u64 count = boots();
        print("boot %u\n", count);
        if (count == 1) {
            panic((u8)number("events", 1));
            if (word_is("then", "spin"))
                for (;;)
                    __asm__ volatile("pause");
        }
        print("it goes on\n");
    } else if (word_is("test", "watchdog")) {
        u64 count = boots();
        print("boot %u\n", count);
        watchdog(count == 1 ? 50 : 0xfffff, number("reloads", 3));
        if (count == 1 && !word_is("then", "end"))
            for (;;)
                __asm__ volatile("pause");
    } else if (word_is("test", "device")) {
        u64 count = boots();
        print("boot %u\n", count);
        device();
        if (count < number("times", 1))
            reset();
    } else {
        print("what test? %s\n", boot()->cmdline);
    }
    power_off();
}
