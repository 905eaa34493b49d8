package Serai::Script;

# One CGI script, compiled into a package of its own.

use v5.36;
use B ();
use Cwd ();
use IO::Handle;
use POSIX ();
use Serai::Override;

my $count = 0;

# Settings of CGI.pm that a script's `use` makes, and those of CGI::Carp.
my @OF_CGI = qw(XHTML NOSTICKY NPH DEBUG TABINDEX CLOSE_UPLOAD_FILES HEADERS_ONCE USE_PARAM_SEMICOLONS
    NO_UNDEF_PARAMS PARAM_UTF8 PUTDATA_UPLOAD APPEND_QUERY_STRING POST_MAX DISABLE_UPLOADS LIST_CONTEXT_WARN);
my @OF_CARP = qw(WRAP WARN NO_TIMESTAMP TO_BROWSER CUSTOM_MSG DIE_HANDLER EMIT_WARNINGS);

# is_script says whether a file is a script rather than data: by its name, or
# by its first two bytes.
sub is_script ($path) {
    return 1 if $path =~ /\.(?:cgi|pl|fcgi)\z/;
    open my $file, '<:raw', $path or return 0;
    read $file, my $start, 2;
    return $start eq '#!';
}

# new reads and compiles a script. {error} is a sentence where that failed. A
# reason given is why it must be a process for each request.
sub new ($class, $path, $name, $why = undef) {
    my $script = bless { path => $path, name => $name, mode => 'inside', warn => 0, switches => '' }, $class;
    $script->{stat} = stat_of($path);
    if (!open my $file, '<:raw', $path) { $script->{error} = "$name cannot be read: $!: its owner must be allowed to" }
    else {
        local $/;
        my $source = readline($file) // '';
        $script->choose($source);
        @$script{qw(mode why)} = ('exec', $why) if defined $why;
        $script->compile($source) if $script->{mode} ne 'exec';
    }
    if ($script->{mode} eq 'exec' && !$script->{perl} && !-x $path) {
        $script->{error} = "$name is no Perl program, so it must be executable: chmod +x $name";
    }
    return $script;
}

sub stat_of ($path) { return join ' ', (stat $path)[0, 1, 7, 9] }

# current says whether the file is the one that was compiled.
sub current ($script) { return $script->{stat} eq stat_of($script->{path}) }

# choose tells from the text how a script must be run.
sub choose ($script, $source) {
    my $way = sub ($mode, $why) { @$script{qw(mode why)} = ($mode, $why) };
    my ($line) = $source =~ /\A#!\s*(.*?)\s*$/m;
    my $switches = '';
    $script->{perl} = 1;
    if (defined $line) {
        if ($line !~ /perl/) {
            $script->{perl} = 0;
            return $way->('exec', 'it is no Perl program');
        }
        ($switches) = $line =~ /perl[0-9.]*\s+(-.*)/ ? $1 : '';
        $script->{switches} = $switches;
        $script->{warn} = 1 if $switches =~ /\A-\w*w/;
    }
    return $way->('exec', "of the switches $switches") if $switches =~ /[^-w\s]/;
    my $code = $source =~ s/^__(?:END|DATA)__\r?$.*//msr;
    $code =~ s/^=[a-zA-Z].*?(?:^=cut\b.*?$|\z)//msg;
    $code =~ s/^\s*#.*$//mg;
    return $way->('exec', 'it asks for its caller') if $code =~ /\b(?:unless|if)\s*\(?\s*!?\s*caller\b/;
    return $way->('forked', 'its name begins with nph-') if $script->{path} =~ m{/nph-[^/]*\z};
    return $way->('forked', "it calls $1") if $code =~ /(?<![>:{\$\@%&\w'"-])(fork|exec|setsid|POSIX::_exit)\b\s*(?!=>)(?=[;(\s'"\$\@{)])/;
    return $way->('forked', 'it sets $| to send while it prints') if $code =~ /^\s{0,3}(?:\$\||\$OUTPUT_AUTOFLUSH)\s*(?:=\s*[^0\s=]|\+\+)|^\s{0,3}(?:\+\+\s*\$\||STDOUT->autoflush)/m;
}

# compile makes {code} of the source.
sub compile ($script, $source) {
    $script->{data} = $2 if $source =~ s/^__(END|DATA)__\r?\n(.*)\z//ms;
    my @pod = $source =~ /^=([a-zA-Z]\w*)/mg;
    $source .= "\n\n=cut\n" if @pod && $pod[-1] ne 'cut';

    # A variable of the file that a sub uses is declared with `our` instead of
    # `my`, where that is plainly the same; else the script is forked.
    my $now = $source;
    while (1) {
        my $error = $script->compile_as($now);
        if (defined $error) {
            require Serai::Site;
            my $root = substr $script->{path}, 0, length($script->{path}) - length($script->{name}) - 1;
            $script->{error} = Serai::Site::sentence("$error", $root, $script->{name});
            return;
        }
        my $name = $script->{mode} eq 'inside' ? $script->captured : undef;
        last if !defined $name;
        my $next = $now =~ s/^my(?=\s*(?:\(\s*(?:[\$\@%]\w+\s*,\s*)*)?\Q$name\E(?!\w))/our/mr;
        if ($next eq $now) {
            @$script{qw(mode why)} = ('forked', "a sub of it uses the file's variable $name (declare it with our)");
            $next = $source;
        }
        $script->discard;
        $now = $next;
    }
    no strict 'refs';
    $script->{code} = \&{"$script->{package}::serai_main"};
    $script->{cgi} = { map { $_ => ${"CGI::$_"} } @OF_CGI } if $INC{'CGI.pm'};
    $script->{carp} = { map { $_ => ${"CGI::Carp::$_"} } @OF_CARP } if $INC{'CGI/Carp.pm'};
    $script->remember;
}

# compile_as compiles a source in a new package; it returns the error.
sub compile_as ($script, $source) {
    my $package = $script->{package} = 'Serai::Script::S' . ++$count;
    my %before = %SIG;
    # That is dealt with (captured), and no news to the customer.
    $SIG{__WARN__} = sub { print STDERR $_[0] if $_[0] !~ /\AVariable "\S+" (?:will not stay shared|is not available) at / };
    my %handlers = %SIG;
    my $ends = @{ ends() };
    my %files = map { $_ => 1 } grep { !/\.pm\z/ } keys %INC;
    no warnings 'once';
    CGI::initialize_globals() if $INC{'CGI.pm'};
    $CGI::Carp::WRAP = $CGI::Carp::WARN = 0 if $INC{'CGI/Carp.pm'};
    chdir $script->directory;
    my $error = '';
    {
        local ($@, $^W) = ('', $script->{warn});
        local *0 = \$script->{path};
        local @ARGV;
        FindBin::again() if $INC{'FindBin.pm'};
        Serai::Scripts::compile_clean("package $package; sub serai_main {\n#line 1 \"$script->{path}\"\n$source\n;}");
        $error = $@;
    }
    if ((my $added = @{ ends() } - $ends) > 0) {
        $script->{ends} = [map { $_->object_2svref } (B::end_av()->ARRAY)[0 .. $added - 1]];
        splice @{ ends() }, 0, $added;
    }
    $script->{handlers} = { map { $_ => $SIG{$_} } grep { ($SIG{$_} // '') ne ($handlers{$_} // '') } keys %SIG };
    set_handlers(\%before);
    delete $INC{$_} for grep { !/\.pm\z/ && !$files{$_} } keys %INC;
    return ref $error || length $error ? $error : undef;
}

sub directory ($script) { return $script->{path} =~ s{/[^/]*\z}{}r }

# ends is the interpreter's own list of END blocks.
sub ends () {
    my $list = B::end_av();
    return $list->isa('B::AV') ? $list->object_2svref : [];
}

# captured names a `my` variable of the file that a named sub uses: such a sub
# would see the variable of the first request for ever.
sub captured ($script) {
    no strict 'refs';
    my $stash = \%{"$script->{package}::"};
    for my $name (keys %$stash) {
        next if ref \$stash->{$name} ne 'GLOB' || $name eq 'serai_main' || !defined &{"$script->{package}::$name"};
        my $sub = B::svref_2object(\&{"$script->{package}::$name"});
        next if $sub->GV->STASH->NAME ne $script->{package} || ref $sub->PADLIST eq 'B::NULL' || $sub->XSUB;
        my $names = $sub->PADLIST->ARRAYelt(0) or next;
        for my $variable ($names->ARRAY) {
            next if ref $variable ne 'B::PADNAME' || !length($variable->PV // '');
            next if !($variable->FLAGS & B::SVf_FAKE()) || $variable->OURSTASH->isa('B::HV');    # not from outside, or `our`
            return $variable->PV if $variable->PV =~ /\A[\$\@%][a-zA-Z_]/;
        }
    }
    return;
}

# remember notes the package's variables as compiling left them, those that
# modules exported to it too.
sub remember ($script) {
    no strict 'refs';
    my $stash = \%{"$script->{package}::"};
    my $known = $script->{variables} //= {};
    for my $name (keys %$stash) {
        next if $known->{$name} || $name =~ /::\z/ || ref \$stash->{$name} ne 'GLOB';
        my $glob = \$stash->{$name};
        my %is;
        $is{scalar} = *$glob{SCALAR} if !Internals::SvREADONLY(${ *$glob{SCALAR} });
        $is{array} = *$glob{ARRAY} if *$glob{ARRAY} && $name ne 'ISA' && $name !~ /\AEXPORT/;
        $is{hash}  = *$glob{HASH}  if *$glob{HASH};
        $is{value}  = ${ $is{scalar} } if $is{scalar};
        $is{values} = [@{ $is{array} }] if $is{array} && @{ $is{array} };
        $is{pairs}  = { %{ $is{hash} } } if $is{hash} && %{ $is{hash} };
        $is{glob} = $glob;
        $known->{$name} = \%is;
    }
    $script->{globs} = keys %$stash;
}

# forget puts the package's variables back and closes its handles, as the end
# of a process would.
sub forget ($script) {
    no strict 'refs';
    if ($script->{globs} != keys %{"$script->{package}::"}) {
        my %old = %{ $script->{variables} };
        $script->remember;
        for my $name (grep { !$old{$_} } keys %{ $script->{variables} }) {    # made by this run: nothing to keep
            delete @{ $script->{variables}{$name} }{qw(value values pairs)};
        }
    }
    for my $is (values %{ $script->{variables} }) {
        my $io = *{ $is->{glob} }{IO};
        close $io if $io && defined fileno $io;
        ${ $is->{scalar} } = $is->{value} if $is->{scalar};
        @{ $is->{array} } = @{ $is->{values} // [] } if $is->{array};
        %{ $is->{hash} } = %{ $is->{pairs} // {} } if $is->{hash};
    }
}

# discard frees the package of a script that changed.
sub discard ($script) {
    return if !$script->{package};
    require Symbol;
    delete $script->{variables};
    Symbol::delete_package($script->{package});
}

sub set_handlers ($want) {
    for my $name (keys %SIG) {
        next if ($SIG{$name} // '') eq ($want->{$name} // '');
        if (defined $want->{$name}) { $SIG{$name} = $want->{$name} }
        elsif ($name =~ /\A__/) { delete $SIG{$name} }
        else { $SIG{$name} = 'DEFAULT' }
    }
}

# enter makes the process look to the script like one of its own.
sub enter ($script, $cgi, $input, $output) {
    %ENV = %$cgi;
    open STDIN, '<&', $input or die "standard input: $!\n";
    open STDOUT, '>&', $output or die "standard output: $!\n";
    for my $handle (*STDIN, *STDOUT) {    # what the one before left: its position, its layers
        seek $handle, 0, 0;
        binmode $handle;
    }
    chdir $script->directory or die "chdir: $!\n";
    no strict 'refs';
    no warnings 'once';
    if ($INC{'CGI.pm'}) {
        CGI::initialize_globals();
        ${"CGI::$_"} = $script->{cgi}{$_} for keys %{ $script->{cgi} // {} };
    }
    if ($INC{'CGI/Carp.pm'}) {
        patch_carp();
        ${"CGI::Carp::$_"} = $script->{carp}{$_} for @OF_CARP;
        @CGI::Carp::WARNINGS = ();
        CGI::Carp::set_progname($script->{name});
    }
    FindBin::again() if $INC{'FindBin.pm'};
    if (defined $script->{data}) { open *{"$script->{package}::DATA"}, '<', \$script->{data} }
    $SIG{$_} = $script->{handlers}{$_} for keys %{ $script->{handlers} };
}

# run runs the script in this process and undoes what it changed. It returns
# the error that the script died of.
sub run ($script, $cgi, $input, $output, @arguments) {
    my %handlers = %SIG;
    my @inc = @INC;
    my %files = map { $_ => 1 } grep { !/\.pm\z/ } keys %INC;
    my ($pid, $umask) = ($$, umask);
    my $error;
    SERAI_SCRIPT: {
        local *0 = \(my $title = $script->{path});
        local @ARGV = @arguments;
        local ($/, $,, $\, $", $;, $^W) = ("\n", undef, undef, ' ', "\034", $script->{warn});
        local ($_, $@);
        eval { $script->enter($cgi, $input, $output); 1 } or do { $error = $@; last SERAI_SCRIPT };
        select STDOUT;
        $| = 0;
        $Serai::Override::running = $$;
        eval { $script->{code}->(); 1 } or $error = ref $@ eq 'Serai::Exit' ? undef : "$@";
    }
    if ($$ != $pid) { Serai::Worker::flush_all(); POSIX::_exit(0) }    # a child that came back instead of ending
    for my $end (@{ $script->{ends} // [] }) {
        SERAI_SCRIPT: { eval { $end->(); 1 } or ref $@ eq 'Serai::Exit' or $error //= "$@" }
    }
    $Serai::Override::running = 0;
    select STDOUT;
    STDOUT->flush if defined fileno STDOUT;
    $| = 0;
    alarm 0;
    umask $umask;
    @INC = @inc;
    delete $INC{$_} for grep { !/\.pm\z/ && !$files{$_} } keys %INC;
    set_handlers(\%handlers);
    $script->forget;
    for (['>&', *STDOUT, $Serai::Scripts::LOG], ['>&', *STDERR, $Serai::Scripts::LOG], ['<', *STDIN, '/dev/null']) {
        my ($how, $handle, $what) = @$_;
        open $handle, $how, $what or die "put a standard handle back: $!\n";
        binmode $handle;
    }
    STDERR->autoflush(1);
    return $error;
}

# become makes this process, a child of the worker, the script's.
sub become ($script, $cgi, $input, $output, @arguments) {
    $Serai::Override::running = 0;
    @Serai::Override::at_exit = ();
    $SIG{$_} = 'DEFAULT' for grep { !/\A__/ && ref $SIG{$_} } keys %SIG;
    @ARGV = @arguments;
    if ($script->{mode} eq 'exec') {
        # A Perl script that is not executable runs persistently too.
        my @command = -x $script->{path} ? $script->{path} : ('/usr/bin/perl', split(' ', $script->{switches}), $script->{path});
        %ENV = %$cgi;
        open STDIN, '<&', $input and open STDOUT, '>&', $output and chdir $script->directory
            and exec { $command[0] } @command, @arguments;
        print STDERR "Serai: exec $script->{name}: $!\n";
        POSIX::_exit(127);
    }
    srand;
    *0 = \(my $title = $script->{path});
    $^W = $script->{warn};
    $script->enter($cgi, $input, $output);
    close $_ for $input, $output;    # a child that closes its standard handles must not hold the reply
    select STDOUT;
    @Serai::Override::at_exit = @{ $script->{ends} // [] };
    $script->{code}->();
    CORE::exit(0);
}

# CGI::Carp asks whether an eval will catch an error. The server's own does not
# count.
sub patch_carp () {
    no warnings qw(redefine once);
    *CGI::Carp::ineval = sub {
        for (my $i = 1; my ($package, undef, undef, $sub) = caller $i; $i++) {
            return $package ne __PACKAGE__ if $sub eq '(eval)';
        }
        return 0;
    };
}

1;
