// From each way in to C: the boot processor by PVH (32-bit) or by the Linux 64-bit protocol, and the others by a start-up
// IPI. All go to long mode, through `kernel_main` in ring 0, and on to `user_main` in ring 3 with all ports open: a KVM
// without hardware virtualization runs only ring 3 at speed.

#include "guest.h"

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18              // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start_pvh

    // At 0x200 of the image, as the Linux protocol wants its entry.
    .section .entry, "ax"
    .skip 0x200
    .code64
start_linux:
    movl $BOOT_LINUX, boot_protocol
    mov %esi, boot_info
    lgdt gdt_pointer
    mov $pml4, %eax
    mov %rax, %cr3
    mov $stacks + STACK_SIZE, %esp
    push $CODE0
    push $start64
    lretq

    .text
    .code32
    .globl start_pvh
start_pvh:
    movl $BOOT_PVH, boot_protocol
    mov %ebx, boot_info
    lgdt gdt_pointer
protected:
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0x20, %eax             // CR4.PAE
    mov %eax, %cr4
    mov $0xc0000080, %ecx       // EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax        // CR0.PG and CR0.PE
    mov %eax, %cr0
    ljmp $CODE0, $start64

    .code64
start64:
    mov $DATA0, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $1, %ebx
    lock xaddl %ebx, cpus_started
    // A stack of its own for ring 0, and below it one for ring 3.
    mov %ebx, %eax
    inc %eax
    imul $STACK_SIZE, %eax, %eax
    lea stacks(%rax), %rsp
    mov %ebx, %edi
    mov %rsp, %rsi
    call kernel_main
    mov %rax, %rdx
    lidt idt_pointer
    mov %ebx, %eax
    shl $4, %eax
    add $TSS, %eax
    ltr %ax
    lea -STACK_SIZE / 2(%rsp), %rcx
    push $DATA3 | 3
    push %rcx
    push %rdx                   // RFLAGS
    push $CODE3 | 3
    push $user_main
    mov %ebx, %edi
    iretq

    // Copied to AP_START: a start-up IPI begins there in real mode.
    .code16
    .globl ap_start, ap_end
ap_start:
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl ap_gdt_pointer - ap_start
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $CODE32, $ap_protected
ap_gdt_pointer:
    .word GDT_LIMIT
    .long gdt
ap_end:
    .code32
ap_protected:
    mov $DATA0, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    jmp protected

    .code64
    // An exception ends the guest, with a word on the console.
    .globl exception_stubs
    .align EXCEPTION_STUB
exception_stubs:
    .altmacro
    .macro stub vector
    .align EXCEPTION_STUB
    .if !(\vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17 || \vector == 21)
    push $0
    .endif
    push $\vector
    jmp exception_common
    .endm
    .set vector, 0
    .rept EXCEPTIONS
    stub %vector
    .set vector, vector + 1
    .endr
exception_common:
    mov %rsp, %rdi
    mov %cr2, %rsi
    call exception

    // The one interrupt that is taken; what C does not keep is kept here.
    .globl interrupt_stub
interrupt_stub:
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    call interrupt
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    iretq

    // An instruction that no emulator of KVM's knows, on an address that is not RAM: KVM gives up on it in ring 0.
    .globl not_emulated
not_emulated:
    mov $UNASSIGNED, %edx
    popcnt (%rdx), %eax
    ret

    .data
    .globl boot_info, boot_protocol, cpus_started
boot_info: .quad 0
boot_protocol: .long 0
cpus_started: .long 0
    .align 8
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // CODE0
    .quad 0x00cf93000000ffff    // DATA0
    .quad 0x00affb000000ffff    // CODE3
    .quad 0x00cff3000000ffff    // DATA3
    .quad 0x00cf9b000000ffff    // CODE32
    .skip 16 * MOST_CPUS        // TSS
gdt_pointer:
    .word GDT_LIMIT
    .quad gdt
idt_pointer:
    .word 16 * VECTORS - 1
    .quad idt

    // The first 8 GiB, one to one, for both rings.
    .align 4096
pml4:
    .quad pdpt + 7
    .skip 4088
pdpt:
    .set n, 0
    .rept 8
    .quad directories + 7 + 4096 * n
    .set n, n + 1
    .endr
    .skip 4096 - 8 * 8
directories:
    .set n, 0
    .rept 8 * 512
    .quad (n << 21) + 0x87
    .set n, n + 1
    .endr
    .section .note.GNU-stack, "", @progbits
